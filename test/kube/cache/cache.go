// Package cache holds what the test cluster is made of, built once from source:
// Kubernetes, etcd, containerd and runc as Go programs of the modules in
// test/kube/tools, a small Debian as the userland of nodes and images, the
// images as an OCI layout, and a containerd directory that has them unpacked.
//
// Each part has a key, a hash of all that it is made from; a part whose key has
// not changed is not made again. A part is made beside its place and put there
// whole, clusters keep the version that they were made with, and one lock keeps
// two builders apart.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Cache is a directory of built parts.
type Cache struct {
	dir  string
	repo string // the project's source tree
	out  io.Writer
}

// New returns the cache in a directory, filled from the source tree repo. One
// line per step goes to out.
func New(dir, repo string, out io.Writer) *Cache { return &Cache{dir: dir, repo: repo, out: out} }

// Bin is the directory of programs.
func (c *Cache) Bin() string { return c.path("bin") }

func (c *Cache) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

// part is one thing in the cache.
type part struct {
	name string
	says string // what making it takes, for whoever waits
	last string // of what it makes, what is made last: a stamp without it is worth nothing
	key  func() (string, error)
	make func(ctx context.Context) error
}

// Build makes every part that is missing or out of date. withE2E adds the
// end-to-end test, which takes another ten minutes when nothing is cached.
func (c *Cache) Build(ctx context.Context, withE2E bool) error {
	if err := os.MkdirAll(c.Bin(), 0o755); err != nil {
		return fmt.Errorf("create the cache: %w", err)
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	parts := c.parts()
	if withE2E {
		parts = append(parts, c.e2e())
	}
	prepared := false
	for _, p := range parts {
		key, err := p.key()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		stamp := c.path("stamps", p.name)
		if have, err := os.ReadFile(stamp); err == nil && string(have) == key {
			if _, err := os.Stat(c.path(p.last)); err == nil {
				continue
			}
		}
		if !prepared {
			if err := c.run(ctx, "setup", c.repo, nil, filepath.Join(c.repo, ".ci", "setup-kube")); err != nil {
				return err
			}
			prepared = true
		}
		c.say("build %s (%s)", p.name, p.says)
		start := time.Now()
		if err := p.make(ctx); err != nil {
			return fmt.Errorf("build %s: %w", p.name, err)
		}
		c.say("built %s in %s", p.name, time.Since(start).Round(time.Second/10))
		if err := errors.Join(os.MkdirAll(filepath.Dir(stamp), 0o755), os.WriteFile(stamp, []byte(key), 0o600)); err != nil {
			return fmt.Errorf("remember %s: %w", p.name, err)
		}
	}
	return nil
}

func (c *Cache) parts() []part {
	return []part{c.kubernetes(), c.node(), c.coreDNS(), c.pause(), c.rootfs(), c.images(), c.containerd()}
}

func (c *Cache) say(format string, args ...any) {
	_, _ = fmt.Fprintf(c.out, "kube: "+format+"\n", args...)
}

// lock waits for other builders.
func (c *Cache) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(c.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	for said := false; ; said = true {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock the cache: %w", err), f.Close())
		}
		if !said {
			c.say("wait for another build in %s", c.dir)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		case <-time.After(time.Second):
		}
	}
}

// run runs a command with its output in a log, whose end is in the error.
func (c *Cache) run(ctx context.Context, name, dir string, env []string, args ...string) error {
	path := c.path("logs", name+".log")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create the log: %w", err)
	}
	log, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("create the log: %w", err)
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w; the end of %s:\n%s", args[0], err, path, end(path))
	}
	return nil
}

// end returns the last lines of a log.
func end(path string) string {
	const lines = 15
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// key hashes texts, and the files whose paths follow them.
func key(texts []string, files ...string) (string, error) {
	h := sha256.New()
	for _, t := range texts {
		_, _ = fmt.Fprintf(h, "%d %s\n", len(t), t)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("read what it is made from: %w", err)
		}
		_, _ = fmt.Fprintf(h, "%d %s\n", len(data), data)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// replace makes a new version of a directory by filling it, and leads the link
// that bears its name there. Versions that no cluster has pinned are removed.
func (c *Cache) replace(name string, fill func(fresh string) error) error {
	fresh, err := os.MkdirTemp(c.dir, name+"-")
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chmod(fresh, 0o755), fill(fresh)); err != nil {
		return err
	}
	link := c.path(name)
	_ = os.Remove(link + ".new") // of a builder that was killed
	if err := errors.Join(os.Symlink(fresh, link+".new"), os.Rename(link+".new", link)); err != nil {
		return err
	}
	return c.prune(name)
}

// prune removes the versions of a directory that nothing leads to.
func (c *Cache) prune(name string) error {
	links, err := filepath.Glob(c.path("clusters", "*", name))
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, link := range append(links, c.path(name)) {
		if target, err := os.Readlink(link); err == nil {
			used[target] = true
		}
	}
	versions, err := filepath.Glob(c.path(name + "-*"))
	if err != nil {
		return err
	}
	for _, v := range versions {
		if !used[v] {
			if err := os.RemoveAll(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// Pinned are the directories that a cluster stands on.
type Pinned struct {
	Rootfs     string // the Debian that nodes and images have
	Images     string // the OCI layout of all images
	Containerd string // a root directory of containerd with all images unpacked
}

// pinned are the names of those directories, in the cache and in a cluster.
const pinned = "rootfs images containerd"

// Pin links the newest directories into that of a cluster, clusters/NAME in the
// cache: as long as it is there they stay, whatever is built meanwhile.
func (c *Cache) Pin(cluster string) error {
	for name := range strings.FieldsSeq(pinned) {
		target, err := os.Readlink(c.path(name))
		if err != nil {
			return fmt.Errorf("use the cache: %w", err)
		}
		if err := os.Symlink(target, filepath.Join(c.Cluster(cluster), name)); err != nil {
			return fmt.Errorf("use the cache: %w", err)
		}
	}
	return nil
}

// Pinned returns what Pin linked.
func (c *Cache) Pinned(cluster string) (Pinned, error) {
	var targets []string
	for name := range strings.FieldsSeq(pinned) {
		target, err := os.Readlink(filepath.Join(c.Cluster(cluster), name))
		if err != nil {
			return Pinned{}, fmt.Errorf("what cluster %q is made of: %w", cluster, err)
		}
		targets = append(targets, target)
	}
	return Pinned{Rootfs: targets[0], Images: targets[1], Containerd: targets[2]}, nil
}

// Cluster is the directory of a cluster: in the cache's file system, so that disks
// of nodes can be made of hard links.
func (c *Cache) Cluster(name string) string { return c.path("clusters", name) }

package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/netctl/netctl/test/kube/oci"
)

// PauseImage is the sandbox of every pod.
const PauseImage = "registry.k8s.io/pause:3.10.2"

// The images of kubeadm (`kubeadm config images list`) and of the end-to-end
// tests (test/utils/image/manifest.go), under their upstream names. Those of the
// tests are substitutes: agnhost in a Debian instead of an Alpine, and agnhost as
// the web server where only a web server is needed.
const (
	agnhost = "/agnhost"
	e2e     = "registry.k8s.io/e2e-test-images/"
)

// picture is an image before its layers are written.
type picture struct {
	names   []string
	debian  bool     // with the userland
	program string   // of the cache's bin, or none
	at      string   // where the program is in the image
	coreDNS bool     // with /coredns, as upstream's agnhost
	run     []string // entrypoint
	args    []string // cmd
}

func pictures() []picture {
	out := []picture{
		{names: []string{PauseImage}, program: "pause", at: "pause", run: []string{"/pause"}},
		{names: []string{"registry.k8s.io/etcd:3.7.0-0"}, program: "etcd", at: "usr/local/bin/etcd"},
		{names: []string{"registry.k8s.io/coredns/coredns:v1.14.6"}, program: "coredns", at: "coredns", run: []string{"/coredns"}},
		{names: []string{"registry.k8s.io/kube-proxy:" + KubernetesVersion}, debian: true, program: "kube-proxy", at: "usr/local/bin/kube-proxy"},
		{names: []string{e2e + "regression-issue-74839:1.5"}, program: "regression-issue-74839", at: "regression-issue-74839", run: []string{"/regression-issue-74839"}},
		{names: []string{e2e + "agnhost:2.66.1"}, debian: true, coreDNS: true, program: "agnhost", at: "agnhost", run: []string{agnhost}, args: []string{"pause"}},
		{
			names:  []string{e2e + "busybox:1.37.0-2", e2e + "glibc-dns-testing:2.1.1", "docker.io/library/busybox:latest", "docker.io/library/debian:latest"},
			debian: true, program: "agnhost", at: "agnhost", args: []string{"/bin/sh"},
		},
		{
			names:  []string{e2e + "nginx:1.27.0-2", e2e + "nginx:1.28.0-2", "docker.io/library/nginx:latest"},
			debian: true, program: "agnhost", at: "agnhost", run: []string{agnhost, "netexec", "--http-port=80"},
		},
	}
	for _, p := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		out = append(out, picture{names: []string{"registry.k8s.io/" + p + ":" + KubernetesVersion}, program: p, at: "usr/local/bin/" + p})
	}
	return out
}

// stampsOf returns the stamps of parts, which hold their keys.
func (c *Cache) stampsOf(parts ...string) []string {
	var out []string
	for _, p := range parts {
		out = append(out, c.path("stamps", p))
	}
	return out
}

func (c *Cache) images() part {
	return part{
		name: "images", says: "seconds", last: "images",
		key: func() (string, error) {
			return key([]string{fmt.Sprint(pictures()), "1"}, c.stampsOf("kubernetes", "node", "coredns", "pause", "rootfs")...)
		},
		make: func(ctx context.Context) error {
			return c.replace("images", func(dir string) error { return c.paint(ctx, dir) })
		},
	}
}

// paint writes the layout: the userland once, and one small layer per program.
func (c *Cache) paint(ctx context.Context, dir string) error {
	l, err := oci.Create(dir)
	if err != nil {
		return err
	}
	debian, err := l.Layer(func(w io.Writer) error {
		cmd := exec.CommandContext(ctx, "tar", "--numeric-owner", "--sort=name", "--mtime=@0", "-C", c.path("rootfs"), "-cf", "-", ".")
		var complaint strings.Builder
		cmd.Stdout, cmd.Stderr = w, &complaint
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("tar: %w: %s", err, complaint.String())
		}
		return nil
	})
	if err != nil {
		return err
	}
	module, err := c.kubernetesSource(ctx)
	if err != nil {
		return err
	}
	for _, p := range pictures() {
		files := []oci.Entry{{Path: p.at, From: filepath.Join(c.Bin(), p.program)}}
		if p.program == "agnhost" {
			files = append(files, oci.Entry{Path: "agnhost-2", Link: "agnhost"}, oci.Entry{Path: "uploads"})
			for _, f := range []string{"localhost.crt", "localhost.key"} { // what its porter serves with
				files = append(files, oci.Entry{Path: f, From: filepath.Join(module, "test/images/agnhost/porter", f), Mode: 0o644})
			}
		}
		if p.coreDNS {
			files = append(files, oci.Entry{Path: "coredns", From: filepath.Join(c.Bin(), "coredns")})
		}
		layer, err := l.Layer(oci.Files(files...))
		if err != nil {
			return err
		}
		image := oci.Image{Names: p.names, Config: oci.Config{
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Entrypoint: p.run, Cmd: p.args,
		}}
		if p.debian {
			image.Layers = append(image.Layers, debian)
		}
		image.Layers = append(image.Layers, layer)
		if err := l.Add(image); err != nil {
			return err
		}
	}
	return l.Finish()
}

func (c *Cache) kubernetesSource(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	cmd.Dir = c.tools("kubernetes")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the source of Kubernetes: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// containerd is a containerd root that has every image unpacked. A node starts
// with a copy of it, whose large files are hard links: nobody writes to blobs
// and committed snapshots.
func (c *Cache) containerd() part {
	return part{
		name: "containerd", says: "images unpacked, about half a minute", last: "containerd",
		key: func() (string, error) { return key([]string{"1"}, c.stampsOf("images", "node")...) },
		make: func(ctx context.Context) error {
			return c.replace("containerd", func(dir string) error { return c.unpack(ctx, dir) })
		},
	}
}

const unpackScript = `set -eu
root=$1 images=$2 work=$3
cat >"$work/config.toml" <<END
version = 3
root = "$root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
address = "$work/sock"
[ttrpc]
address = "$work/ttrpc"
END
containerd --config "$work/config.toml" &
trap 'kill $!; wait $!' EXIT
for i in $(seq 100); do ctr -a "$work/sock" version >/dev/null 2>&1 && break; sleep 0.1; done
tar -C "$images" -cf - . | ctr -a "$work/sock" -n k8s.io images import --local -
`

func (c *Cache) unpack(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp("", "kube-unpack")
	if err != nil {
		return fmt.Errorf("create a work directory: %w", err)
	}
	path := "PATH=" + c.Bin() + ":" + os.Getenv("PATH")
	err = c.run(ctx, "containerd", c.dir, []string{path},
		"unshare", "--mount", "bash", "-c", unpackScript, "unpack", dir, c.path("images"), work)
	return errors.Join(err, os.RemoveAll(work))
}

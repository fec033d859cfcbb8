package rivals

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// Tools are the programs of the module test/bench/tools.
type Tools struct {
	Dir string // of that module
	Out string // where they are built
}

// build builds one of them.
func (t Tools) build(ctx context.Context, name, pkg string) (string, error) {
	path := filepath.Join(t.Out, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-C", t.Dir, "-trimpath", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	return path, nil
}

const (
	uapiDir  = "/var/run/wireguard" // compiled into wireguard-go
	wgName   = "netctl-bench-"      // the sockets of all namespaces lie there, by the interfaces' names
	wgPort   = 51821                // beside the agents'
	uapiWait = 5 * time.Second
)

// WireGuard connects the pods of two sites by wireguard-go, its own program with a
// TUN, behind the nodes' kernels' routing and a veth pair each.
func WireGuard(ctx context.Context, tools Tools, sites [2]Site, underlay int) (p *Path, err error) {
	exe, err := tools.build(ctx, "wireguard-go", "golang.zx2c4.com/wireguard")
	if err != nil {
		return nil, err
	}
	p = &Path{From: sites[0].Pod, To: sites[1].Pod, Addr: netip.MustParseAddr("10.7.2.2")}
	var commands []*exec.Cmd
	p.Close = func() error {
		for _, c := range commands {
			_ = c.Process.Signal(syscall.SIGTERM) // it removes its socket
			_ = c.Wait()                          // by the signal
		}
		return nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
	}
	mtu := strconv.Itoa(underlay - wireguardOverhead)
	for i, site := range sites {
		far, k, o := sites[1-i], strconv.Itoa(i+1), strconv.Itoa(2-i)
		name := wgName + k
		cmd, err := startWireGuard(exe, site.Node, name)
		if err != nil {
			return nil, err
		}
		commands = append(commands, cmd)
		p.Carriers = append(p.Carriers, cmd.Process.Pid)
		if err := configure(ctx, name, fmt.Sprintf(
			"set=1\nprivate_key=%x\nlisten_port=%d\npublic_key=%x\nendpoint=%s\nallowed_ip=10.7.%s.0/24\n\n",
			keys[i].Bytes(), wgPort, keys[1-i].PublicKey().Bytes(), netip.AddrPortFrom(far.Addr, wgPort), o)); err != nil {
			return nil, err
		}
		if err := errors.Join(forwarding(site.Node), leg(site, "wg", "10.7", k, mtu), ip(
			"-n "+site.Node+" link set "+name+" mtu "+mtu+" up",
			"-n "+site.Node+" route add 10.7."+o+".0/24 dev "+name)); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// CleanWireGuard removes the sockets of processes that were killed.
func CleanWireGuard() error {
	found, err := filepath.Glob(filepath.Join(uapiDir, wgName+"*.sock"))
	if err != nil {
		return fmt.Errorf("find the sockets of wireguard-go: %w", err)
	}
	var errs []error
	for _, path := range found {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}

func startWireGuard(exe, node, name string) (*exec.Cmd, error) {
	ns, err := kernel.OpenNamespace(filepath.Join(kernel.RuntimeDir, node))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	cmd := exec.Command(exe, "-f", name) //nolint:noctx // Close ends it
	cmd.Env = append(os.Environ(), "LOG_LEVEL=error", "WG_PROCESS_FOREGROUND=1")
	cmd.Stderr = os.Stderr
	if err := kernel.StartIn(ns, cmd); err != nil {
		return nil, fmt.Errorf("start wireguard-go on %s: %w", node, err)
	}
	return cmd, nil
}

// configure writes to wireguard-go's socket as soon as it is there.
func configure(ctx context.Context, name, text string) error {
	ctx, cancel := context.WithTimeout(ctx, uapiWait)
	defer cancel()
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", filepath.Join(uapiDir, name+".sock"))
		if err == nil {
			_, err = io.WriteString(c, text)
			reply := make([]byte, 256)
			n := 0
			if err == nil {
				n, err = c.Read(reply)
			}
			_ = c.Close()
			if answer := strings.TrimSpace(string(reply[:n])); err == nil && answer != "errno=0" {
				err = fmt.Errorf("it answers %q", answer)
			}
			if err != nil {
				return fmt.Errorf("configure wireguard-go: %w", err)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("configure wireguard-go: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

package rivals

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// egressMTU is what netctl's pods have on an underlay of 1500 bytes; all rivals get
// the same.
const egressMTU = "1420"

// Masquerade is a pod behind a veth pair on a node, whose kernel gives it the node's
// address.
func Masquerade(node, outside string, addr netip.Addr) (*Path, error) {
	pod := Prefix + "masquerade"
	remove, err := Namespaces(pod)
	if err != nil {
		return nil, err
	}
	err = errors.Join(forwarding(node), ip(
		"link add eth0 mtu "+egressMTU+" netns "+pod+" type veth peer name masq mtu "+egressMTU+" netns "+node,
		"-n "+pod+" address add 10.6.1.2/24 dev eth0", "-n "+node+" address add 10.6.1.1/24 dev masq",
		"-n "+pod+" link set eth0 up", "-n "+node+" link set masq up",
		"-n "+pod+" route add default via 10.6.1.1"),
		in(node, masquerading, "nft", "-f", "-"))
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	return &Path{From: pod, To: outside, Addr: addr, Close: func() error {
		return errors.Join(remove(), in(node, "", "nft", "delete", "table", "ip", "bench"))
	}}, nil
}

// Pasta is a pod whose packets passt's pasta turns into the node's sockets.
func Pasta(node, outside string, addr netip.Addr) (*Path, error) {
	return program(node, outside, addr, "pasta", func(ns string) []string {
		return []string{
			"--foreground", "--quiet", "--config-net", "--runas", "0:0", "--mtu", egressMTU, "--netns-only", "--netns", ns,
			"--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none",
		}
	})
}

// Slirp is a pod whose packets slirp4netns turns into the node's sockets.
func Slirp(node, outside string, addr netip.Addr) (*Path, error) {
	return program(node, outside, addr, "slirp4netns", func(ns string) []string {
		return []string{"--configure", "--mtu=" + egressMTU, "--disable-host-loopback", "--netns-type=path", ns, "tap0"}
	})
}

// program starts a program on a node that serves a new namespace, and waits until
// that has a default route.
func program(node, outside string, addr netip.Addr, name string, args func(ns string) []string) (*Path, error) {
	if _, err := exec.LookPath(name); err != nil {
		return nil, fmt.Errorf("%w: run 'make setup'", err)
	}
	pod := Prefix + name
	remove, err := Namespaces(pod)
	if err != nil {
		return nil, err
	}
	host, err := kernel.OpenNamespace(filepath.Join(kernel.RuntimeDir, node))
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	defer host.Close()
	var said strings.Builder
	cmd := exec.Command(name, args(filepath.Join(kernel.RuntimeDir, pod))...) //nolint:noctx // Close ends it
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := kernel.StartIn(host, cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), remove())
	}
	end := func() error {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait() // killed
		return remove()
	}
	if err := routed(pod); err != nil {
		err = errors.Join(err, end())
		return nil, fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(said.String()))
	}
	return &Path{From: pod, To: outside, Addr: addr, Carriers: []int{cmd.Process.Pid}, Close: end}, nil
}

// routed waits until a namespace has a default route.
func routed(name string) error {
	for range 200 {
		out, err := exec.Command("ip", "-n", name, "route", "show", "default").CombinedOutput() //nolint:noctx // ends at once
		if err != nil {
			return fmt.Errorf("list the routes of %s: %w: %s", name, err, out)
		}
		if len(out) > 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%s has no default route: %w", name, os.ErrDeadlineExceeded)
}

const masquerading = `table ip bench {
	chain out {
		type nat hook postrouting priority 100
		ip saddr 10.6.1.0/24 masquerade
	}
}
`

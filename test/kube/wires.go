package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// The cluster's networks, all in namespaces of its own:
//
//	fabric:  br0 192.0.2.1/24 ── nodeN ═ eth0 of node N, 192.0.2.(10+N)
//	         out0 198.51.100.1/24 ═ eth0 of outside, 198.51.100.10
//
// The fabric is the router between them. It knows no pods.
const (
	fabricName  = "fabric"
	outsideName = "outside"

	fabricAddress  = "192.0.2.1"
	outsideRouter  = "198.51.100.1"
	outsideAddress = "198.51.100.10"
)

func (c *Cluster) netns(part string) string { return "kube-" + c.name + "-" + part }

func nodeAddress(node string) netip.Addr {
	n, err := number(node)
	if err != nil {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + n)})
}

func (c *Cluster) apiServer() string { return "https://" + nodeAddress("node1").String() + ":6443" }

// namespaces lists the network namespaces that bear the cluster's name.
func (c *Cluster) namespaces() ([]string, error) {
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var out []string
	for _, e := range entries {
		part, ok := strings.CutPrefix(e.Name(), c.netns(""))
		if _, err := number(part); ok && (err == nil || part == fabricName || part == outsideName) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// ip runs ip(8).
func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput() //nolint:noctx // ends at once
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// ips runs several, one per line.
func ips(lines string) error {
	for line := range strings.Lines(lines) {
		if fields := strings.Fields(line); len(fields) > 0 {
			if err := ip(fields...); err != nil {
				return err
			}
		}
	}
	return nil
}

// sysctl sets keys=values in a namespace.
func sysctl(netns string, settings ...string) error {
	args := append([]string{"netns", "exec", netns, "sysctl", "-qw"}, settings...)
	return ip(args...)
}

// fabricUp makes the router, the host outside and its servers.
func (c *Cluster) fabricUp(ctx context.Context) error {
	fabric, outside := c.netns(fabricName), c.netns(outsideName)
	err := ips(fmt.Sprintf(`
		netns add %[1]s
		netns add %[2]s
		-n %[1]s link set lo up
		-n %[2]s link set lo up
		-n %[1]s link add br0 type bridge
		-n %[1]s addr add %[3]s/24 dev br0
		-n %[1]s link set br0 up
		-n %[1]s link add out0 type veth peer name eth0 netns %[2]s
		-n %[1]s addr add %[4]s/24 dev out0
		-n %[1]s link set out0 up
		-n %[2]s addr add %[5]s/24 dev eth0
		-n %[2]s link set eth0 up
		-n %[2]s route add default via %[4]s`,
		fabric, outside, fabricAddress, outsideRouter, outsideAddress))
	if err != nil {
		return err
	}
	if err := sysctl(fabric, "net.ipv4.ip_forward=1"); err != nil {
		return err
	}
	return c.outsideUp(ctx)
}

// wire makes a node's network: its namespace and its cable. It is the part of a
// boot that is the same for a new node and for one that was rebooted.
func (c *Cluster) wire(node string) error {
	fabric, netns := c.netns(fabricName), c.netns(node)
	if _, err := os.Stat(filepath.Join("/run/netns", netns)); err == nil {
		return nil
	}
	err := ips(fmt.Sprintf(`
		netns add %[2]s
		-n %[2]s link set lo up
		-n %[1]s link add %[3]s type veth peer name eth0 netns %[2]s
		-n %[1]s link set %[3]s master br0 up
		-n %[2]s addr add %[4]s/24 dev eth0
		-n %[2]s link set eth0 up
		-n %[2]s route add default via %[5]s`,
		fabric, netns, node, nodeAddress(node), fabricAddress))
	if err != nil {
		return err
	}
	settings := []string{"net.ipv4.ip_forward=" + c.options.IPForward}
	if rp := c.options.RPFilter; rp != "" {
		settings = append(settings, "net.ipv4.conf.all.rp_filter="+rp, "net.ipv4.conf.default.rp_filter="+rp, "net.ipv4.conf.eth0.rp_filter="+rp)
	}
	return sysctl(netns, settings...)
}

// unwire removes what wire made. The cable is cut by itself: the kernel removes
// an unnamed namespace, and what is in it, some time later.
func (c *Cluster) unwire(node string) error {
	netns := c.netns(node)
	if _, err := os.Stat(filepath.Join("/run/netns", netns)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	cable := ip("-n", c.netns(fabricName), "link", "delete", node)
	if cable != nil && strings.Contains(cable.Error(), "Cannot find device") {
		cable = nil
	}
	return errors.Join(cable, ip("netns", "delete", netns))
}

// inotifyInstances is room for several clusters: every kubelet, containerd and
// API server watches files, and a kernel's default is 128 for all of a user's
// processes together.
const inotifyInstances = 8192

// watches raises this machine's bound on inotify instances where it is lower.
func watches() error {
	const file = "/proc/sys/fs/inotify/max_user_instances"
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n >= inotifyInstances {
		return nil
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(inotifyInstances)), 0); err != nil {
		return fmt.Errorf("raise the bound on inotify instances, which kubelets run out of: %w", err)
	}
	return nil
}

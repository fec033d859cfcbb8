package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/netctl/netctl/test/kube/cache"
	"github.com/netctl/netctl/test/kube/machine"
)

// The services of a node.
const (
	containerd = "containerd"
	kubelet    = "kubelet"
)

const containerdConfig = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '` + cache.PauseImage + `'

[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '/etc/containerd/certs.d'

[plugins.'io.containerd.cri.v1.runtime']
# Without CAP_SYS_RESOURCE nobody may lower oom_score_adj, and runc dies trying.
restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '/usr/local/bin/runc'
SystemdCgroup = false
`

// kubeletScript is what a systemd unit would hold. It waits for what kubeadm
// writes, as the unit's restarts do.
const kubeletScript = `#!/bin/sh
while ! [ -s /var/lib/kubelet/config.yaml ] || ! [ -s /var/lib/kubelet/kubeadm-flags.env ]; do sleep 0.2; done
. /var/lib/kubelet/kubeadm-flags.env
exec kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
  --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS
`

// cgroup is where a node's processes are; of "", where all nodes' are.
func (c *Cluster) cgroup(node string) string {
	return filepath.Join("/netctl-kube-"+c.name, node)
}

func (c *Cluster) machine(node string) *machine.Machine {
	return machine.New(machine.Config{
		Name: node, Netns: c.netns(node), Root: c.path("nodes", node, "root"),
		Usr: c.path("rootfs", "usr"), Binaries: c.cache.Bin(), Share: c.path("share"), Cgroup: c.cgroup(node),
	})
}

// bootNew makes a node's disk and boots it.
func (c *Cluster) bootNew(ctx context.Context, node string) error {
	m := c.machine(node)
	if err := c.makeDisk(ctx, m); err != nil {
		return fmt.Errorf("make the disk: %w", err)
	}
	return c.boot(ctx, node)
}

// boot starts a node and its services.
func (c *Cluster) boot(ctx context.Context, node string) error {
	m := c.machine(node)
	if err := c.wire(node); err != nil {
		return err
	}
	if err := m.Boot(ctx); err != nil {
		return err
	}
	if err := c.startContainerd(ctx, m); err != nil {
		return err
	}
	return m.Start(ctx, kubelet, "/etc/kube/kubelet")
}

func (c *Cluster) startContainerd(ctx context.Context, m *machine.Machine) error {
	if err := m.Start(ctx, containerd, "containerd --config=/etc/containerd/config.toml"); err != nil {
		return err
	}
	return c.await(ctx, "containerd", 30*time.Second, func() error {
		cmd, err := m.Command(ctx, "ctr", "version")
		if err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s; its log ends\n%s", err, out, m.Log(containerd, 10))
		}
		return nil
	})
}

// diskScript copies what a node may write to and links the rest: nobody writes to
// images' blobs and committed snapshots, so all nodes share them. containerd's
// databases are copied.
const diskScript = `set -eu
root=$1 debian=$2 images=$3
mkdir -p "$root"
cd "$root"
mkdir usr proc sys dev run
for d in bin sbin lib lib32 lib64 libx32; do
  if [ -L "$debian/$d" ]; then cp -a "$debian/$d" .; fi
done
for d in etc var opt root home srv mnt tmp; do cp -a "$debian/$d" .; done
cp -al "$images" var/lib/containerd 2>/dev/null || { rm -rf var/lib/containerd; cp -a "$images" var/lib/containerd; }
find var/lib/containerd -name '*.db' -exec sh -c 'cp -a "$1" "$1.own" && mv "$1.own" "$1"' own {} ';'
`

func (c *Cluster) makeDisk(ctx context.Context, m *machine.Machine) error {
	if err := os.RemoveAll(filepath.Dir(m.Root)); err != nil {
		return err
	}
	parts, err := c.cache.Pinned(c.name)
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "sh", "-c", diskScript, "disk", m.Root, parts.Rootfs, parts.Containerd).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	hosts := []string{"127.0.0.1 localhost", outsideAddress + " outside.example"}
	for i := range maxNodes {
		node := fmt.Sprintf("node%d", i+1)
		hosts = append(hosts, nodeAddress(node).String()+" "+node)
	}
	var errs []error
	for _, f := range []struct {
		path, text string
		mode       os.FileMode
	}{
		{"/etc/resolv.conf", "nameserver " + outsideAddress + "\n", 0o644},
		{"/etc/hosts", strings.Join(hosts, "\n") + "\n", 0o644},
		{"/etc/hostname", m.Name + "\n", 0o644},
		{"/etc/machine-id", fmt.Sprintf("%032x\n", nodeAddress(m.Name).As16()), 0o644},
		{"/etc/containerd/config.toml", containerdConfig, 0o644},
		{"/etc/containerd/certs.d/_default/hosts.toml", "server = \"http://" + outsideAddress + ":" + registryPort + "\"\n", 0o644},
		{"/etc/kube/kubelet", kubeletScript, 0o755},
		{"/etc/profile.d/kube.sh", "export KUBECONFIG=/etc/kubernetes/admin.conf\n", 0o644},
	} {
		errs = append(errs, m.Write(f.path, f.text, f.mode))
	}
	return errors.Join(errs...)
}

// StopNode cuts a node's power.
func (c *Cluster) StopNode(node string) error {
	m, err := c.machineOf(node)
	if err != nil {
		return err
	}
	return c.step("stop "+node, func() error { return errors.Join(m.Kill(), c.unwire(node)) })
}

// StartNode boots a node that was stopped, with the disk that it had.
func (c *Cluster) StartNode(ctx context.Context, node string) error {
	m, err := c.machineOf(node)
	if err != nil {
		return err
	}
	if _, err := os.Stat(m.Root); err != nil {
		return fmt.Errorf("%s has no disk: let it join", node)
	}
	return c.step("start "+node, func() error {
		if err := c.boot(ctx, node); err != nil {
			return err
		}
		if err := c.routes(); err != nil || node != controlPlane {
			return err
		}
		return c.await(ctx, "the API server", 3*time.Minute, func() error { return c.healthy(ctx) })
	})
}

// Reboot stops and starts a node.
func (c *Cluster) Reboot(ctx context.Context, node string) error {
	if err := c.StopNode(node); err != nil {
		return err
	}
	return c.StartNode(ctx, node)
}

// Restart stops and starts a service of a node.
func (c *Cluster) Restart(ctx context.Context, service, node string) error {
	m, err := c.machineOf(node)
	if err != nil {
		return err
	}
	return c.step("restart "+service+" on "+node, func() error {
		if service != kubelet && service != containerd {
			return fmt.Errorf("no such service: %s or %s", kubelet, containerd)
		}
		if err := m.Stop(ctx, service); err != nil {
			return err
		}
		if service == containerd {
			return c.startContainerd(ctx, m)
		}
		return m.Start(ctx, kubelet, "/etc/kube/kubelet")
	})
}

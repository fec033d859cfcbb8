package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/netctl/netctl/test/kube/cache"
	"github.com/netctl/netctl/test/kube/machine"
)

// joinToken is of a cluster that nobody outside can reach.
const joinToken = "abcdef.0123456789abcdef"

// kubeadmConfig is as near to the defaults as this machine allows. Every line
// that is not a default has its reason here:
//
//   - taints: every node takes pods, also the first.
//   - etcd without fsync: the disks of all nodes are one disk.
//   - no leader election: there is one of each, and its restart should not wait.
//   - kubelet: cgroup v1 is allowed, and cgroups have no limits.
//   - kubelet: no iptables rules. Where it finds iptables it drops packets from
//     other addresses to 127.0.0.0/8, unless netfilter translated them there. A
//     conformance spec wants a host port on 127.0.0.1 to answer them, and netctl
//     answers on a socket, not by netfilter. --kubelet-iptables keeps the default.
//   - kubelet: this machine's disk, swap and memory are no reason to evict.
const kubeadmConfig = `apiVersion: kubeadm.k8s.io/v1beta4
kind: {{if .Init}}Init{{else}}Join{{end}}Configuration
{{- if .Init}}
bootstrapTokens: [{token: {{.Token}}, ttl: "0"}]
localAPIEndpoint: {advertiseAddress: {{.Address}}}
{{- else}}
discovery:
  bootstrapToken: {token: {{.Token}}, apiServerEndpoint: "{{.Server}}:6443", unsafeSkipCAVerification: true}
{{- end}}
nodeRegistration:
  name: {{.Node}}
  criSocket: unix:///run/containerd/containerd.sock
  taints: []
  kubeletExtraArgs:
  - {name: node-ip, value: "{{.Address}}"}
{{- if .Zone}}
  - {name: node-labels, value: "topology.kubernetes.io/zone={{.Zone}}"}
{{- end}}
{{- if .Init}}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: {{.Version}}
{{- if .PodSubnet}}
networking: {podSubnet: "{{.PodSubnet}}"}
{{- end}}
etcd:
  local:
    extraArgs: [{name: unsafe-no-fsync, value: "true"}]
controllerManager:
  extraArgs: [{name: leader-elect, value: "false"}]
scheduler:
  extraArgs: [{name: leader-elect, value: "false"}]
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
cgroupsPerQOS: false
enforceNodeAllocatable: [none]
failSwapOn: false
makeIPTablesUtilChains: {{.IPTables}}
resolvConf: /etc/resolv.conf
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
{{- end}}
`

func (c *Cluster) kubeadmConfig(node string, init bool) (string, error) {
	zone := ""
	if n, err := number(node); err == nil && c.options.Zones > 0 {
		zone = fmt.Sprintf("zone%d", (n-1)%c.options.Zones+1)
	}
	var out strings.Builder
	err := template.Must(template.New("kubeadm").Parse(kubeadmConfig)).Execute(&out, map[string]any{
		"Init": init, "Node": node, "Token": joinToken, "Address": nodeAddress(node), "Server": nodeAddress(controlPlane),
		"Zone": zone, "IPTables": c.options.KubeletIPTables,
		"Version": cache.KubernetesVersion, "PodSubnet": c.options.PodSubnet,
	})
	return out.String(), err
}

func (c *Cluster) kubeadmInit(ctx context.Context) error {
	var skip []string
	if !c.options.KubeProxy {
		skip = append(skip, "addon/kube-proxy")
	}
	if !c.options.CoreDNS {
		skip = append(skip, "addon/coredns")
	}
	args := []string{"init"}
	if len(skip) > 0 {
		args = append(args, "--skip-phases="+strings.Join(skip, ","))
	}
	if err := c.kubeadm(ctx, controlPlane, true, args...); err != nil {
		return err
	}
	config, err := os.ReadFile(c.machine(controlPlane).Path("/etc/kubernetes/admin.conf"))
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("kubeconfig"), config, 0o600)
}

func (c *Cluster) kubeadmJoin(ctx context.Context, node string) error {
	return c.kubeadm(ctx, node, false, "join")
}

// kubeadm runs kubeadm on a node. There is no init system that it knows, so it
// starts no kubelet: ours waits for its files already.
func (c *Cluster) kubeadm(ctx context.Context, node string, init bool, args ...string) error {
	m := c.machine(node)
	config, err := c.kubeadmConfig(node, init)
	if err != nil {
		return err
	}
	if err := m.Write("/etc/kubernetes/kubeadm.yaml", config, 0o600); err != nil {
		return err
	}
	args = append([]string{"kubeadm"}, args...)
	cmd, err := m.Command(ctx, append(args, "--config=/etc/kubernetes/kubeadm.yaml", "--ignore-preflight-errors=all")...)
	if err != nil {
		return err
	}
	out, err := cmd.CombinedOutput()
	if werr := m.Write("/var/log/kubeadm.log", string(out), 0o644); werr != nil {
		return werr
	}
	if err != nil {
		return fmt.Errorf("kubeadm: %w\n%s\nkubelet's log ends\n%s", err, m.Log("kubeadm", 20), m.Log(kubelet, 10))
	}
	return nil
}

// kubectl runs kubectl and returns its output.
func (c *Cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	return output(c.outsideCommand(ctx, append([]string{"kubectl", "--request-timeout=30s"}, args...)...))
}

func output(cmd *exec.Cmd) (string, error) {
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return string(out), err
}

// Join makes a node and lets it join the cluster.
func (c *Cluster) Join(ctx context.Context, node string) error {
	m, err := c.machineOf(node)
	if err != nil {
		return err
	}
	if _, err := os.Stat(m.Root); err == nil {
		return fmt.Errorf("%s is in the cluster; remove it first", node)
	}
	return c.step("join "+node, func() error {
		if err := c.bootNew(ctx, node); err != nil {
			return err
		}
		if err := c.kubeadmJoin(ctx, node); err != nil {
			return err
		}
		return c.network(ctx)
	})
}

// Remove deletes a node from the cluster, with its disk.
func (c *Cluster) Remove(ctx context.Context, node string) error {
	m, err := c.machineOf(node)
	if err != nil {
		return err
	}
	if node == controlPlane {
		return errors.New("the control plane is on " + node)
	}
	return c.step("remove "+node, func() error {
		if _, err := c.kubectl(ctx, "delete", "node", node, "--ignore-not-found"); err != nil {
			return err
		}
		return errors.Join(m.Kill(), c.unwire(node), os.RemoveAll(filepath.Dir(m.Root)))
	})
}

const (
	manifest       = "/etc/kubernetes/manifests/kube-apiserver.yaml"
	manifestHidden = "/etc/kubernetes/kube-apiserver.yaml.stopped"
)

// StopAPIServer takes the API server's manifest away from the kubelet and
// returns when nothing listens.
func (c *Cluster) StopAPIServer(ctx context.Context) error {
	return c.step("stop the API server", func() error {
		if err := c.moveManifest(manifest, manifestHidden); err != nil {
			return err
		}
		return c.await(ctx, "the API server's end", time.Minute, func() error {
			listens, err := c.machine(controlPlane).Command(ctx, "ss", "-Hltn", "sport = :6443")
			if err != nil {
				return err
			}
			out, err := output(listens)
			if err == nil && out != "" {
				err = errors.New("it still listens")
			}
			return err
		})
	})
}

// StartAPIServer gives the manifest back and returns when the server is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	return c.step("start the API server", func() error {
		if err := c.moveManifest(manifestHidden, manifest); err != nil {
			return err
		}
		return c.await(ctx, "the API server", 2*time.Minute, func() error { return c.healthy(ctx) })
	})
}

func (c *Cluster) moveManifest(from, to string) error {
	m := c.machine(controlPlane)
	if _, err := os.Stat(m.Path(to)); err == nil {
		return nil
	}
	return os.Rename(m.Path(from), m.Path(to))
}

// healthy asks the API server whether it is ready.
func (c *Cluster) healthy(ctx context.Context) error {
	out, err := c.outsideCommand(ctx, "curl", "-ksSf", "-m3", c.apiServer()+"/readyz").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// importImage imports an archive into containerd of every node.
func (c *Cluster) importImage(ctx context.Context, archive string) error {
	return c.each(ctx, c.nodeNames(), func(ctx context.Context, node string) error {
		return importOn(ctx, c.machine(node), archive)
	})
}

func importOn(ctx context.Context, m *machine.Machine, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd, err := m.Command(ctx, "ctr", "-n", "k8s.io", "images", "import", "--local", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import %s: %w: %s", archive, err, out)
	}
	return nil
}

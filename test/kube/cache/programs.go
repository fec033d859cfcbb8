package cache

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// KubernetesVersion is what the programs say that they are; kubeadm compares.
// The module is pinned in tools/kubernetes/go.mod.
const KubernetesVersion = "v1.37.2"

const (
	kubernetesFlags = "-s -w -X k8s.io/component-base/version.gitVersion=" + KubernetesVersion +
		" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37" +
		" -X k8s.io/component-base/version.gitTreeState=clean"
	containerdFlags = "-s -w -X github.com/containerd/containerd/v2/version.Version=2.4.2"
	runcFlags       = "-s -w -X main.version=1.5.2"
)

func (c *Cache) tools(module string) string {
	return filepath.Join(c.repo, "test", "kube", "tools", module)
}

// toolsKey changes with the module's requirements and with the compiler.
func (c *Cache) toolsKey(module string, how ...string) func() (string, error) {
	return func() (string, error) {
		version, err := exec.Command("go", "env", "GOVERSION", "GOARCH").Output() //nolint:noctx // ends at once
		if err != nil {
			return "", fmt.Errorf("ask for the compiler's version: %w", err)
		}
		dir := c.tools(module)
		return key(append(how, string(version)), filepath.Join(dir, "go.mod"), filepath.Join(dir, "go.sum"))
	}
}

// goBuild builds one or several programs of a module of tools. Test binaries and
// C need other arguments, hence verb.
func (c *Cache) goBuild(ctx context.Context, module string, cgo bool, verb []string, args ...string) error {
	env := []string{"CGO_ENABLED=0", "GOWORK=off"}
	if cgo {
		env[0] = "CGO_ENABLED=1"
	}
	all := append(append([]string{"go"}, verb...), append([]string{"-trimpath"}, args...)...)
	return c.run(ctx, "go-"+module, c.tools(module), env, all...)
}

func (c *Cache) kubernetes() part {
	var packages []string
	for _, p := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubeadm", "kubectl"} {
		packages = append(packages, "k8s.io/kubernetes/cmd/"+p)
	}
	packages = append(packages, "k8s.io/kubernetes/test/images/agnhost",
		"k8s.io/kubernetes/test/images/regression-issue-74839", "github.com/onsi/ginkgo/v2/ginkgo")
	return part{
		name: "kubernetes", says: "about 12 minutes on two cores when Go has nothing cached", last: "bin/kubelet",
		key: c.toolsKey("kubernetes", kubernetesFlags, strings.Join(packages, " ")),
		make: func(ctx context.Context) error {
			return c.goBuild(ctx, "kubernetes", false, []string{"build"},
				append([]string{"-ldflags", kubernetesFlags, "-o", c.Bin() + "/"}, packages...)...)
		},
	}
}

// e2e is Kubernetes' own end-to-end test. vet would take twenty minutes of its own.
func (c *Cache) e2e() part {
	return part{
		name: "e2e.test", says: "about 10 minutes on two cores when Go has nothing cached", last: "bin/e2e.test",
		key: c.toolsKey("kubernetes", kubernetesFlags, "e2e"),
		make: func(ctx context.Context) error {
			return c.goBuild(ctx, "kubernetes", false, []string{"test", "-c", "-vet=off"},
				"-ldflags", kubernetesFlags, "-o", filepath.Join(c.Bin(), "e2e.test"), "k8s.io/kubernetes/test/e2e")
		},
	}
}

// node has what runs on a node beside Kubernetes, and the plugins that netctl is
// measured against.
func (c *Cache) node() part {
	programs := []struct {
		cgo  bool
		args []string
	}{
		{false, []string{
			"-ldflags", "-s -w", "-o", c.Bin() + "/",
			"github.com/containernetworking/plugins/plugins/ipam/host-local",
			"github.com/containernetworking/plugins/plugins/main/loopback",
			"github.com/containernetworking/plugins/plugins/main/ptp",
			"github.com/containernetworking/plugins/plugins/meta/portmap",
		}},
		{false, []string{"-ldflags", "-s -w", "-o", filepath.Join(c.Bin(), "etcd"), "go.etcd.io/etcd/server/v3"}},
		{false, []string{
			"-ldflags", containerdFlags, "-o", c.Bin() + "/",
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
		}},
		{true, []string{
			"-tags", "seccomp", "-ldflags", runcFlags, "-o", filepath.Join(c.Bin(), "runc"),
			"github.com/opencontainers/runc",
		}},
	}
	return part{
		name: "node", says: "containerd, runc, etcd and CNI plugins: about 4 minutes", last: "bin/runc",
		key: c.toolsKey("node", strings.ReplaceAll(fmt.Sprint(programs), c.Bin(), "bin")),
		make: func(ctx context.Context) error {
			for _, p := range programs {
				if err := c.goBuild(ctx, "node", p.cgo, []string{"build"}, p.args...); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// coreDNS is kubeadm's own cluster DNS, for clusters that keep it.
func (c *Cache) coreDNS() part {
	return part{
		name: "coredns", says: "about 5 minutes on two cores when Go has nothing cached", last: "bin/coredns",
		key: c.toolsKey("coredns", "-s -w"),
		make: func(ctx context.Context) error {
			return c.goBuild(ctx, "coredns", false, []string{"build"},
				"-ldflags", "-s -w", "-o", filepath.Join(c.Bin(), "coredns"), "github.com/coredns/coredns")
		},
	}
}

func (c *Cache) pause() part {
	source := filepath.Join(c.repo, "test", "kube", "pause")
	return part{
		name: "pause", says: "seconds", last: "bin/pause",
		key: func() (string, error) { return key(nil, filepath.Join(source, "main.go")) },
		make: func(ctx context.Context) error {
			return c.run(ctx, "go-pause", c.repo, []string{"CGO_ENABLED=0"},
				"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(c.Bin(), "pause"), "./test/kube/pause")
		},
	}
}

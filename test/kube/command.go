package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/test/kube/cache"
)

// errPassed marks the exit of a command that ran on the user's behalf: its exit
// code is ours, and it has said itself what was wrong.
var errPassed = errors.New("the command failed")

// settings are the flags of every command.
type settings struct {
	name  string
	cache string
}

func (s *settings) open(out io.Writer) (*Cluster, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("namespaces of nodes need root")
	}
	repo, err := repository()
	if err != nil {
		return nil, err
	}
	return newCluster(s.name, cache.New(s.cache, repo, out), repo, out)
}

// repository finds the top of the source tree from the working directory.
func repository() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "test", "kube", "tools", "node", "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("run it inside netctl's source tree")
		}
	}
	return "", err
}

func cacheDir() string {
	if dir := os.Getenv("NETCTL_KUBE_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = "/var/cache"
	}
	return filepath.Join(dir, "netctl-kube")
}

func command(out io.Writer) *cobra.Command {
	s := &settings{}
	root := &cobra.Command{
		Use: "kube", Short: "real Kubernetes clusters on this machine, for tests",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetOut(out)
	root.PersistentFlags().StringVar(&s.name, "name", "kube", "the cluster's name")
	root.PersistentFlags().StringVar(&s.cache, "cache", cacheDir(), "where built programs and images are kept (NETCTL_KUBE_CACHE)")
	root.AddCommand(
		s.buildCommand(), s.upCommand(), s.downCommand(), s.usageCommand(),
		s.execCommand(), s.runCommand(), s.logsCommand(), s.importCommand(),
		s.nodeCommand(), s.restartCommand(), s.apiServerCommand(),
		s.demoCommand(), s.e2eCommand(), serveCommand(),
	)
	return root
}

// with makes a command that works on the cluster, bounded in time.
func (s *settings) with(c *cobra.Command, limit time.Duration, do func(w *work) error) *cobra.Command {
	c.RunE = func(cmd *cobra.Command, args []string) error {
		cluster, err := s.open(cmd.OutOrStdout())
		if err != nil {
			return err
		}
		ctx, cancel := contextFor(cmd.Context(), limit)
		defer cancel()
		return do(&work{ctx: ctx, Cluster: cluster, args: args})
	}
	return c
}

func (s *settings) buildCommand() *cobra.Command {
	withE2E := false
	c := &cobra.Command{Use: "build", Short: "build programs and images that are not in the cache", Args: cobra.NoArgs}
	c.Flags().BoolVar(&withE2E, "e2e", false, "also the end-to-end test")
	return s.with(c, 2*time.Hour, func(w *work) error { return w.cache.Build(w.ctx, withE2E) })
}

func (s *settings) upCommand() *cobra.Command {
	o := options{}
	c := &cobra.Command{Use: "up", Short: "bring the cluster up", Args: cobra.NoArgs}
	o.flags(c)
	return s.with(c, 15*time.Minute, func(w *work) error { return w.Up(w.ctx, o) })
}

func (o *options) flags(c *cobra.Command) {
	f := c.Flags()
	f.IntVar(&o.Nodes, "nodes", 3, "how many; the first has the control plane, all take pods")
	f.StringVar(&o.CNI, "cni", cniNetctl, "the pods' network: netctl (dist/netctl-image.tar and deploy/netctl.yaml), ptp (reference plugins and static routes), none")
	f.StringVar(&o.PodSubnet, "pod-subnet", "", "kubeadm's podSubnet; ptp needs one and takes "+ptpSubnet)
	f.BoolVar(&o.KubeProxy, "kube-proxy", false, "keep kubeadm's kube-proxy")
	f.BoolVar(&o.CoreDNS, "coredns", false, "keep kubeadm's CoreDNS")
	f.BoolVar(&o.KubeletIPTables, "kubelet-iptables", false, "let the kubelet make its iptables rules (they drop foreign packets to 127.0.0.1, also to host ports)")
	f.IntVar(&o.Zones, "zones", 0, "label the nodes with that many zones in turn; some end-to-end specs need 3")
	f.StringVar(&o.RPFilter, "rp-filter", "", "the nodes' net.ipv4.conf.*.rp_filter: 0, 1 or 2 (default: the kernel's)")
	f.StringVar(&o.IPForward, "ip-forward", "1", "the nodes' net.ipv4.ip_forward: 0 or 1")
}

func (s *settings) downCommand() *cobra.Command {
	c := &cobra.Command{Use: "down", Short: "remove the cluster and everything in it", Args: cobra.NoArgs}
	return s.with(c, 2*time.Minute, func(w *work) error { return w.Down(w.ctx) })
}

func (s *settings) usageCommand() *cobra.Command {
	c := &cobra.Command{Use: "usage", Short: "say how to use the cluster", Args: cobra.NoArgs}
	return s.with(c, time.Minute, func(w *work) error {
		if err := w.load(); err != nil {
			return err
		}
		w.usage()
		return nil
	})
}

func (s *settings) execCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "exec NODE -- COMMAND...", Short: "run a command on a node (or on outside)", Args: cobra.MinimumNArgs(2),
	}
	return s.with(c, 0, func(w *work) error {
		if w.args[0] == outsideName {
			return pass(w.outsideCommand(w.ctx, w.args[1:]...))
		}
		m, err := w.machineOf(w.args[0])
		if err != nil {
			return err
		}
		cmd, err := m.Command(w.ctx, w.args[1:]...)
		if err != nil {
			return err
		}
		return pass(cmd)
	})
}

func (s *settings) runCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "run -- COMMAND...", Args: cobra.MinimumNArgs(1),
		Short: "run a command of this machine on outside, with KUBECONFIG and kubectl",
	}
	return s.with(c, 0, func(w *work) error { return pass(w.outsideCommand(w.ctx, w.args...)) })
}

func (s *settings) logsCommand() *cobra.Command {
	lines := 50
	c := &cobra.Command{Use: "logs NODE SERVICE", Short: "print the end of kubelet's or containerd's log", Args: cobra.ExactArgs(2)}
	c.Flags().IntVarP(&lines, "lines", "n", lines, "how many")
	return s.with(c, time.Minute, func(w *work) error {
		m, err := w.machineOf(w.args[0])
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w.out, m.Log(w.args[1], lines))
		return err
	})
}

func (s *settings) importCommand() *cobra.Command {
	c := &cobra.Command{Use: "import ARCHIVE", Short: "import an image archive on every node", Args: cobra.ExactArgs(1)}
	return s.with(c, 5*time.Minute, func(w *work) error {
		if err := w.load(); err != nil {
			return err
		}
		return w.importImage(w.ctx, w.args[0])
	})
}

func (s *settings) nodeCommand() *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "what happens to nodes"}
	for _, a := range []struct {
		use, short string
		do         func(w *work, node string) error
	}{
		{"reboot", "kill everything on it and start it again with the same disk", func(w *work, n string) error { return w.Reboot(w.ctx, n) }},
		{"stop", "kill everything on it", func(w *work, n string) error { return w.StopNode(n) }},
		{"start", "start it again after stop", func(w *work, n string) error { return w.StartNode(w.ctx, n) }},
		{"remove", "delete it from the cluster, with its disk", func(w *work, n string) error { return w.Remove(w.ctx, n) }},
		{"join", "make a node and let it join: a removed one, with the same address, or a new one", func(w *work, n string) error { return w.Join(w.ctx, n) }},
	} {
		c.AddCommand(s.with(&cobra.Command{Use: a.use + " NODE", Short: a.short, Args: cobra.ExactArgs(1)}, 5*time.Minute,
			func(w *work) error {
				if err := w.load(); err != nil {
					return err
				}
				return a.do(w, w.args[0])
			}))
	}
	return c
}

func (s *settings) restartCommand() *cobra.Command {
	c := &cobra.Command{Use: "restart kubelet|containerd NODE", Short: "stop a service of a node and start it", Args: cobra.ExactArgs(2)}
	return s.with(c, 2*time.Minute, func(w *work) error {
		if err := w.load(); err != nil {
			return err
		}
		return w.Restart(w.ctx, w.args[0], w.args[1])
	})
}

func (s *settings) apiServerCommand() *cobra.Command {
	c := &cobra.Command{Use: "apiserver stop|start", Short: "stop the API server, or start it again", Args: cobra.ExactArgs(1)}
	return s.with(c, 3*time.Minute, func(w *work) error {
		if err := w.load(); err != nil {
			return err
		}
		switch w.args[0] {
		case "stop":
			return w.StopAPIServer(w.ctx)
		case "start":
			return w.StartAPIServer(w.ctx)
		}
		return fmt.Errorf("apiserver %q: say stop or start", w.args[0])
	})
}

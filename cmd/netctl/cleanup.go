package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent"
	"github.com/netctl/netctl/internal/agent/cleanup"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/cluster"
)

func newCleanup(io streams) *cobra.Command {
	s := settings.Default()
	var config, node, kubeconfig string
	var force bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything of netctl from this node",
		Long: `Remove everything of netctl from this node: what the container runtime was told,
the interfaces of pods that run (which then have no network until they are made
anew), netctl0 and its routes, the records and the node's key. Run it on the node
or in a container with the agent's mounts, when no agent runs there any more.

With --kubeconfig, the Node object's annotations and the node's blocks go, too;
'netctl uninstall' does all of this for a whole cluster.`,
		Example: `  netctl cleanup
  netctl cleanup --config=/etc/netctl/config.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config != "" {
				if err := s.ReadFile(config); err != nil {
					return fmt.Errorf("%w: %w", errUsage, err)
				}
			}
			if kubeconfig != "" && node == "" {
				return fmt.Errorf("%w: --kubeconfig needs --node, or NODE_NAME in the environment", errUsage)
			}
			err := cleanup.Run(cleanup.Config{
				Install:  cni.Installation{BinDir: s.CNIBinDir, ConfDir: s.CNIConfDir},
				StateDir: s.StateDir, DataDir: s.DataDir, Interface: agent.HostInterface, Force: force,
				Removed: func(what string) { fmt.Fprintln(io.out, "removed", what) },
			})
			if errors.Is(err, cleanup.ErrServed) {
				return fmt.Errorf("%w: end it first, or use --force", err)
			}
			if kubeconfig != "" {
				err = errors.Join(err, withdraw(cmd.Context(), io, kubeconfig, node))
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&config, "config", "", "the agent's configuration file (default the usual directories)")
	flags.StringVar(&s.StateDir, "state-dir", s.StateDir, "the agent's state directory")
	flags.StringVar(&s.DataDir, "data-dir", s.DataDir, "the agent's data directory")
	flags.StringVar(&s.CNIBinDir, "cni-bin-dir", s.CNIBinDir, "where the plugin is installed")
	flags.StringVar(&s.CNIConfDir, "cni-conf-dir", s.CNIConfDir, "where its configuration is installed")
	flags.StringVar(&node, "node", os.Getenv("NODE_NAME"), "this node's name in the cluster (default $NODE_NAME)")
	flags.StringVar(&kubeconfig, "kubeconfig", "", "credentials for removing what the cluster knows of this node")
	flags.BoolVar(&force, "force", false, "also when an agent runs")
	return cmd
}

// withdraw takes back what the agent told the cluster.
func withdraw(ctx context.Context, io streams, kubeconfig, node string) error {
	k, err := cluster.NewKubernetes(cluster.KubernetesConfig{Node: node, Kubeconfig: kubeconfig})
	if err != nil {
		return err
	}
	errs := []error{k.WithdrawNode(ctx, node)}
	store := k.Blocks()
	blocks, err := store.List(ctx)
	errs = append(errs, err)
	for _, b := range blocks {
		if b.Node != node {
			continue
		}
		err := store.Delete(ctx, b)
		errs = append(errs, err)
		if err == nil {
			fmt.Fprintln(io.out, "removed block", b.CIDR)
		}
	}
	return errors.Join(errs...)
}

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/deploy"
	"github.com/netctl/netctl/deploy/removal"
	"github.com/netctl/netctl/internal/cluster/objects"
)

func newUninstall(io streams) *cobra.Command {
	var namespace, image, kubeconfig string
	var skip []string
	var timeout time.Duration
	var dryRun, force bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove netctl from a Kubernetes cluster and from its nodes",
		Long: `Remove netctl from a Kubernetes cluster and from its nodes: the agents end, a pod
on each node takes away the interfaces, routes and files, and then all objects
are deleted, those of the block definitions included. Pods that have their network
from netctl should be gone before: without a plugin they cannot even end.`,
		Example: `  netctl uninstall --dry-run
  netctl uninstall`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags := chartFlags{namespace: namespace, image: image}
			docs, err := flags.render(io.in)
			if err != nil {
				return err
			}
			client, err := objects.New(kubeconfig)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("not done within %s", timeout))
			defer cancel()
			err = removal.Run(ctx, removal.Config{
				Objects: client, Installed: docs, SkipNodes: skip, Force: force, DryRun: dryRun, Out: io.out,
			})
			if err != nil {
				return fmt.Errorf("uninstall: %w", err)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&namespace, "namespace", "n", deploy.DefaultNamespace, "namespace of the agents")
	flags.StringVar(&image, "image", "", "image that cleans the nodes, where the agents are gone already (default this version's)")
	flags.StringVar(&kubeconfig, "kubeconfig", "", "credentials of an administrator (default what kubectl takes)")
	flags.StringSliceVar(&skip, "skip-node", nil, "nodes that cannot be reached; they are left as they are")
	flags.DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for all of it")
	flags.BoolVar(&force, "force", false, "also where pods have their network from netctl")
	flags.BoolVar(&dryRun, "dry-run", false, "only say what would be done")
	return cmd
}

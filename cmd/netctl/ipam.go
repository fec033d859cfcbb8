package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/ipam"
)

type planFlags struct {
	clusterCIDRs, podCIDRs, serviceCIDRs, avoid []string
	nodes, podsPerNode, services                int
}

func (f *planFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.clusterCIDRs, "cluster-cidr", nil, "range that the cluster lives in, one or one of each family (required)")
	cmd.Flags().IntVar(&f.nodes, "nodes", 100, "nodes the cluster may have")
	cmd.Flags().IntVar(&f.podsPerNode, "pods-per-node", 110, "pods a node may have")
	cmd.Flags().IntVar(&f.services, "services", 5000, "services the cluster may have")
	cmd.Flags().StringSliceVar(&f.podCIDRs, "pod-cidr", nil, "fix the pod range instead of having it chosen")
	cmd.Flags().StringSliceVar(&f.serviceCIDRs, "service-cidr", nil, "fix the service range instead of having it chosen")
	cmd.Flags().StringSliceVar(&f.avoid, "avoid", nil, "ranges that must stay free: node addresses, name servers, the underlay")
	_ = cmd.MarkFlagRequired("cluster-cidr") // the flag exists
}

// carve turns the flags into a layout.
func (f *planFlags) carve() (ipam.Layout, error) {
	p := ipam.Plan{Nodes: f.nodes, PodsPerNode: f.podsPerNode, Services: f.services}
	var err error
	if p.Supernets, err = parsePrefixes("--cluster-cidr", f.clusterCIDRs); err != nil {
		return ipam.Layout{}, err
	}
	if p.Pods, err = parsePrefixes("--pod-cidr", f.podCIDRs); err != nil {
		return ipam.Layout{}, err
	}
	if p.ServiceRanges, err = parsePrefixes("--service-cidr", f.serviceCIDRs); err != nil {
		return ipam.Layout{}, err
	}
	var avoid []netip.Prefix
	if avoid, err = parsePrefixes("--avoid", f.avoid); err != nil {
		return ipam.Layout{}, err
	}
	for _, a := range avoid {
		p.Avoid = append(p.Avoid, ipam.Taken{Name: "--avoid", Range: a})
	}
	return ipam.Carve(p)
}

func newIPAM(io streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ipam",
		Short: "Plan a cluster's addresses and make the plan real",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(ipamPlan(io), ipamApply(io))
	return cmd
}

func ipamPlan(io streams) *cobra.Command {
	var f planFlags
	var output string
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Carve one range into pod, service and node ranges",
		Example: `  netctl ipam plan --cluster-cidr 10.128.0.0/9 --nodes 500 --pods-per-node 110 --services 20000
  netctl ipam plan --cluster-cidr 10.128.0.0/9,fd00:10::/48 -o kubeadm > kubeadm.yaml`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			layout, err := f.carve()
			if err != nil {
				return err
			}
			var text string
			switch output {
			case "", "table":
				text = layout.Table()
			case "json":
				data, err := layout.JSON()
				if err != nil {
					return err
				}
				text = string(data)
			case "kubeadm":
				text = layout.Kubeadm()
			default:
				return fmt.Errorf("%w: -o %q: use table, json or kubeadm", errUsage, output)
			}
			_, err = fmt.Fprint(io.out, text)
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "table, json or kubeadm (a ClusterConfiguration)")
	return cmd
}

func ipamApply(io streams) *cobra.Command {
	var f planFlags
	var dir, kubeconfig string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Make a plan real: its ServiceCIDR and block pool objects",
		Long: `Make a plan real where that can be done while a cluster runs: the ServiceCIDR
object that Services get addresses from, and netctl's pool of node blocks. They
are written to the API server that --kubeconfig names, else into the directory
that is the cluster's state, or printed with --dry-run.`,
		Example: `  netctl ipam apply --cluster-cidr 10.128.0.0/9 --nodes 500 --kubeconfig ~/.kube/config
  netctl ipam apply --cluster-cidr 10.128.0.0/9 --nodes 500 --cluster-dir /etc/netctl/cluster
  netctl ipam apply --cluster-cidr 10.128.0.0/9 --nodes 500 --dry-run | kubectl apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			layout, err := f.carve()
			if err != nil {
				return err
			}
			if dryRun {
				_, err := fmt.Fprint(io.out, layout.Manifests())
				return err
			}
			if kubeconfig != "" {
				return applyToServer(cmd.Context(), io, kubeconfig, layout)
			}
			if _, err := os.Stat(dir); err != nil {
				return fmt.Errorf("the cluster's directory: %w", err)
			}
			path := filepath.Join(dir, "ipam.yaml")
			if err := renameio.WriteFile(path, []byte(layout.Manifests()), 0o644, renameio.WithTempDir(dir)); err != nil {
				return fmt.Errorf("write the plan: %w", err)
			}
			_, err = fmt.Fprintf(io.out, "%s written\n", path)
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&dir, "cluster-dir", "/etc/netctl/cluster", "directory of manifests that is the cluster's state")
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "write to the API server that this file names")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print the objects instead")
	cmd.MarkFlagsMutuallyExclusive("kubeconfig", "cluster-dir")
	return cmd
}

// applyToServer writes the plan's objects to an API server.
func applyToServer(ctx context.Context, io streams, kubeconfig string, layout ipam.Layout) error {
	k, err := cluster.NewKubernetes(cluster.KubernetesConfig{Kubeconfig: kubeconfig})
	if err != nil {
		return err
	}
	done, err := k.Apply(ctx, []byte(layout.Manifests()))
	for _, object := range done {
		if _, err := fmt.Fprintf(io.out, "%s applied\n", object); err != nil {
			return err
		}
	}
	return err
}

// parsePrefixes reads the ranges that a flag was given.
func parsePrefixes(flag string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%w: %s %q: use a range such as 10.128.0.0/16", errUsage, flag, s)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%w: %s %s has host bits set: did you mean %s?", errUsage, flag, p, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

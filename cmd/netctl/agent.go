package main

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/internal/agent"
	"github.com/netctl/netctl/internal/cluster"
)

type agentFlags struct {
	node, clusterDir, stateDir, domain, logLevel string
	resolvConf, clusterCIDRs                     []string
	listenPort                                   uint16
	mtu, workers                                 int
}

func newAgent(io streams) *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run this node's daemon: CNI server, router, overlay, service proxy and DNS",
		Long: `Run this node's daemon. It serves the CNI plugin's socket, holds the TUN of
every pod, and follows the cluster's state, which it reads from a directory of
ordinary Kubernetes manifests.`,
		Example: `  netctl agent --node=node1 --cluster-dir=/etc/netctl/cluster --cluster-cidr=10.128.0.0/16`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(io.err, f.logLevel)
			if err != nil {
				return err
			}
			source, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: f.clusterDir, Logger: log})
			if err != nil {
				return fmt.Errorf("%w: --cluster-dir: %w", errUsage, err)
			}
			ranges, err := parsePrefixes("--cluster-cidr", f.clusterCIDRs)
			if err != nil {
				return err
			}
			return agent.Run(cmd.Context(), agent.Config{
				Node: f.node, StateDir: f.stateDir, Domain: f.domain, ResolvConf: f.resolvConf,
				ListenPort: f.listenPort, MTU: f.mtu, Workers: f.workers, ClusterCIDRs: ranges,
				Source: source, Claims: source, Blocks: source.Blocks(), Log: log,
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.node, "node", os.Getenv("NODE_NAME"), "this node's name in the cluster (default $NODE_NAME)")
	flags.StringVar(&f.clusterDir, "cluster-dir", "/etc/netctl/cluster", "directory of manifests that is the cluster's state")
	flags.StringVar(&f.stateDir, "state-dir", "/run/netctl", "where the agent keeps its records and its socket")
	flags.StringVar(&f.domain, "cluster-domain", "cluster.local", "domain of the cluster's names")
	flags.StringSliceVar(&f.resolvConf, "resolv-conf", nil, "files that name the resolvers for other names (default /etc/resolv.conf)")
	flags.StringSliceVar(&f.clusterCIDRs, "cluster-cidr", nil, "pod ranges of the whole cluster; without them, and without a BlockPool, nothing counts as outside; blocks are claimed from them when Node objects have no podCIDRs")
	flags.Uint16Var(&f.listenPort, "wireguard-port", agent.DefaultListenPort, "UDP port that other nodes reach this one at")
	flags.IntVar(&f.mtu, "mtu", 0, "MTU of pods (default what the default route's link leaves)")
	flags.IntVar(&f.workers, "workers", 0, "threads that forward packets (default half the processors)")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

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

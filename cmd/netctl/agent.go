package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/proxy"
	"github.com/netctl/netctl/proxy/balance"
)

type agentFlags struct {
	settings.Settings
	sourceFlags
	config, node, probeSocket, holdSocket string
	standIn                               bool
	drainLimit                            time.Duration
	resolvConf                            []string
}

func newAgent(io streams) *cobra.Command {
	f := agentFlags{Settings: settings.Default()}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run this node's daemon: CNI server, router, overlay, service proxy and DNS",
		Long: `Run this node's daemon. It serves the CNI plugin's socket, holds the TUN of
every pod, and follows the cluster's state, which it reads from the API server or
from a directory of ordinary Kubernetes manifests.`,
		Example: `  netctl agent --config=/etc/netctl/config.yaml
  netctl agent --node=node1 --cluster-dir=/etc/netctl/cluster --cluster-cidrs=10.128.0.0/16`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.merge(cmd.Flags().Changed)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			log, err := newLogger(io.err, s.LogLevel)
			if err != nil {
				return err
			}
			cfg, err := f.agentConfig(s, log)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			saveMemory()
			return agent.Run(cmd.Context(), cfg)
		},
	}
	f.bind(cmd)
	return cmd
}

// gcPercent is how much garbage an agent keeps above what it needs, in percent.
// Packets are carried without any, so collecting twice as often as Go does by
// itself costs little, and a node of a large cluster gets a sixth of the agent's
// memory back (docs/performance.md).
const gcPercent = 50

// saveMemory sets how often garbage is collected, unless the environment does.
func saveMemory() {
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(gcPercent)
	}
}

// bind defines the flags: one for each key of the configuration file, and what is
// of this process alone.
func (f *agentFlags) bind(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "configuration file; flags count more")
	f.bindSource(cmd)
	flags.StringVar(&f.node, "node", os.Getenv("NODE_NAME"), "this node's name in the cluster (default $NODE_NAME)")
	flags.StringVar(&f.probeSocket, "probe-socket", "", "where 'netctl probe' is answered")
	flags.StringVar(&f.holdSocket, "hold-socket", "", "where 'netctl hold' keeps this agent's descriptors (default: the one that started it)")
	flags.BoolVar(&f.standIn, "stand-in", false, "end when another agent has taken over, as what 'netctl hold' starts for an agent that died")
	flags.DurationVar(&f.drainLimit, "drain-limit", agent.DefaultDrainLimit, "how long to stay, after another agent took over, for connections that end in this process")
	flags.StringSliceVar(&f.resolvConf, "resolv-conf", nil, "files that name the resolvers for other names (default /etc/resolv.conf)")

	flags.StringSliceVar(&f.ClusterCIDRs, "cluster-cidrs", nil, "pod ranges of the whole cluster (default what the cluster says); blocks are claimed from them when Node objects have no podCIDRs")
	flags.StringVar(&f.ClusterDomain, "cluster-domain", f.ClusterDomain, "domain of the cluster's names (default what the cluster says, else cluster.local)")
	flags.StringVar(&f.APIServer, "api-server", f.APIServer, "address of the API server (default the one in --kubelet-conf)")
	flags.StringVar(&f.KubeletConf, "kubelet-conf", f.KubeletConf, "the kubelet's kubeconfig, read for the API server's address and CA")
	flags.Uint16Var(&f.WireguardPort, "wireguard-port", f.WireguardPort, "UDP port that other nodes reach this one at")
	flags.IntVar(&f.MTU, "mtu", f.MTU, "MTU of pods (default what the default route's link leaves)")
	flags.IntVar(&f.Workers, "workers", f.Workers, "threads that forward packets (default half the processors)")
	flags.StringVar((*string)(&f.Proxy), "proxy", string(f.Proxy), "whose service traffic is ours: full, pods (the rest is kube-proxy's) or auto")
	flags.StringVar((*string)(&f.DNS), "dns", string(f.DNS), "answer at the cluster's name server address: on, off or auto")
	flags.StringVar((*string)(&f.Egress), "egress", string(f.Egress), "how pods reach the outside: sockets of the agent, packets that the kernel forwards, or auto (packets where the node can)")
	flags.StringSliceVar(&f.NodePortAddresses, "node-port-addresses", nil, "addresses that have node ports: primary (default), all, ranges; with localhost, 127.0.0.1 and ::1 too")
	flags.BoolVar(&f.AllowExternalIPs, "allow-external-ips", f.AllowExternalIPs, "serve what Services name in spec.externalIPs")
	flags.StringSliceVar(&f.LoadBalancerPools, "load-balancer-pools", nil, "addresses for Services of type LoadBalancer, such as 203.0.113.0/28 or 203.0.113.16-203.0.113.20")
	flags.StringVar(&f.HealthzBindAddress, "healthz-bind-address", f.HealthzBindAddress, "where the service proxy's /healthz and /livez are; empty for nowhere")
	flags.StringVar(&f.MetricsBindAddress, "metrics-bind-address", f.MetricsBindAddress, "where the service proxy's /metrics are; empty for nowhere")
	for _, name := range []string{"node-port-addresses", "allow-external-ips", "load-balancer-pools", "healthz-bind-address", "metrics-bind-address"} {
		_ = flags.MarkHidden(name) // of interest to few; the configuration file explains them
	}
	flags.StringVar(&f.CNIBinDir, "cni-bin-dir", f.CNIBinDir, "where the plugin is installed, with the kubernetes source")
	flags.StringVar(&f.CNIConfDir, "cni-conf-dir", f.CNIConfDir, "where its configuration is installed, with the kubernetes source")
	flags.StringVar(&f.StateDir, "state-dir", f.StateDir, "records and sockets, which end with the boot")
	flags.StringVar(&f.DataDir, "data-dir", f.DataDir, "the node's key, which stays")
	flags.StringVar(&f.LogLevel, "log-level", f.LogLevel, "debug, info, warn or error")
}

// merge returns the settings of the file with the flags that were given above
// them.
func (f *agentFlags) merge(given func(flag string) bool) (settings.Settings, error) {
	s := f.Settings
	if f.config != "" {
		s = settings.Default()
		if err := s.ReadFile(f.config); err != nil {
			return s, err
		}
		for flag, set := range map[string]func(){
			"cluster-cidrs":        func() { s.ClusterCIDRs = f.ClusterCIDRs },
			"cluster-domain":       func() { s.ClusterDomain = f.ClusterDomain },
			"api-server":           func() { s.APIServer = f.APIServer },
			"kubelet-conf":         func() { s.KubeletConf = f.KubeletConf },
			"wireguard-port":       func() { s.WireguardPort = f.WireguardPort },
			"mtu":                  func() { s.MTU = f.MTU },
			"workers":              func() { s.Workers = f.Workers },
			"proxy":                func() { s.Proxy = f.Proxy },
			"dns":                  func() { s.DNS = f.DNS },
			"egress":               func() { s.Egress = f.Egress },
			"node-port-addresses":  func() { s.NodePortAddresses = f.NodePortAddresses },
			"allow-external-ips":   func() { s.AllowExternalIPs = f.AllowExternalIPs },
			"load-balancer-pools":  func() { s.LoadBalancerPools = f.LoadBalancerPools },
			"healthz-bind-address": func() { s.HealthzBindAddress = f.HealthzBindAddress },
			"metrics-bind-address": func() { s.MetricsBindAddress = f.MetricsBindAddress },
			"cni-bin-dir":          func() { s.CNIBinDir = f.CNIBinDir },
			"cni-conf-dir":         func() { s.CNIConfDir = f.CNIConfDir },
			"state-dir":            func() { s.StateDir = f.StateDir },
			"data-dir":             func() { s.DataDir = f.DataDir },
			"log-level":            func() { s.LogLevel = f.LogLevel },
		} {
			if given(flag) {
				set()
			}
		}
	}
	return s, s.Validate()
}

// agentConfig constructs what the agent works with.
func (f *agentFlags) agentConfig(s settings.Settings, log *slog.Logger) (agent.Config, error) {
	ranges, err := s.Ranges()
	if err != nil {
		return agent.Config{}, err
	}
	nodePorts, err := proxy.ParseNodePortAddresses(s.NodePortAddresses)
	if err != nil {
		return agent.Config{}, err
	}
	pools, err := balance.ParsePools(s.LoadBalancerPools)
	if err != nil {
		return agent.Config{}, err
	}
	cfg := agent.Config{
		Pools:     pools,
		NodePorts: nodePorts, ExternalIPs: s.AllowExternalIPs, Healthz: s.HealthzBindAddress, Metrics: s.MetricsBindAddress,
		Node: f.node, StateDir: s.StateDir, DataDir: s.DataDir, Domain: s.ClusterDomain, ResolvConf: f.resolvConf,
		ListenPort: s.WireguardPort, MTU: s.MTU, Workers: s.Workers, ClusterCIDRs: ranges,
		Proxy: s.Proxy, DNS: s.DNS, Egress: s.Egress, ProbeSocket: f.probeSocket,
		HoldSocket: f.holdSocket, StandIn: f.standIn, DrainLimit: f.drainLimit, Log: log,
	}
	source, err := f.chooseSource()
	if err != nil {
		return agent.Config{}, err
	}
	if source == "directory" {
		d, err := f.directory(log)
		if err != nil {
			return agent.Config{}, err
		}
		cfg.Source, cfg.Claims, cfg.Blocks = d, d, d.Blocks()
		return cfg, nil
	}
	cluster.LogClient(log)
	k, err := cluster.NewKubernetes(cluster.KubernetesConfig{
		Node: f.node, Kubeconfig: f.kubeconfig, Server: s.APIServer, KubeletConf: s.KubeletConf,
		CacheFile: filepath.Join(s.StateDir, "state"), Logger: log,
	})
	if err != nil {
		return agent.Config{}, err
	}
	cfg.Source, cfg.Claims, cfg.Blocks, cfg.Cluster, cfg.Events, cfg.Balancers = k, k, k.Blocks(), apiCluster{k}, k, k
	cfg.Install = &cni.Installation{
		BinDir: s.CNIBinDir, ConfDir: s.CNIConfDir, Conflist: cni.Conflist{Socket: filepath.Join(s.StateDir, "cni.sock")},
	}
	return cfg, nil
}

// apiCluster is a Kubernetes API server as the agent asks it.
type apiCluster struct{ *cluster.Kubernetes }

// Facts implements agent.Cluster.
func (c apiCluster) Facts(ctx context.Context) (settings.Cluster, error) {
	s, err := c.Settings(ctx)
	return factsOf(s), err
}

// LiveFacts implements agent.Cluster.
func (c apiCluster) LiveFacts(ctx context.Context) (settings.Cluster, error) {
	s, err := c.LiveSettings(ctx)
	return factsOf(s), err
}

func factsOf(s cluster.Settings) settings.Cluster {
	return settings.Cluster{PodSubnets: s.PodSubnets, Domain: s.DNSDomain, NameServers: s.ClusterDNS}
}

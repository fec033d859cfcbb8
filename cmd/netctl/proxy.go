package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/proxynode"
	"github.com/netctl/netctl/proxy"
	"github.com/netctl/netctl/proxy/health"
)

// serviceRow is one frontend as a node sees it.
type serviceRow struct {
	Service  string   `json:"service"`
	Port     string   `json:"port"`
	Frontend string   `json:"frontend"`
	Backends []string `json:"backends"`
	Verdict  string   `json:"verdict"`
}

type proxyFlags struct {
	partFlags
	node, stateDir         string
	podCIDRs, serviceCIDRs []string
	nodePorts              []string
	healthz, metrics       string
	externalIPs            bool
	mtu                    int
	keep                   bool
}

// proxyKinds are what the proxy reads of an API server.
func proxyKinds() []string {
	return []string{"nodes", "pods", "services", "endpointslices", "servicecidrs"}
}

func newProxy(io streams) *cobra.Command {
	var f proxyFlags
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Serve this node's services beside another CNI, without the rest of netctl",
		Long: `Serve this node's services beside another CNI, without the rest of netctl: the
ranges of virtual addresses are routed to netctl0, connections end here and go on
to backends from sockets of this host. Node ports are listened on. Backends see
the node as the client. An agent does the same itself: do not run both.`,
		Example: `  netctl proxy --node=$(hostname) --kubeconfig=/etc/kubernetes/netctl-proxy.conf
  netctl proxy table --node=node1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serveProxy(cmd.Context(), io, f) },
	}
	f.bindPart(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.node, "node", os.Getenv("NODE_NAME"), "this node's name in the cluster (default $NODE_NAME)")
	flags.StringSliceVar(&f.podCIDRs, "pod-cidrs", nil, "ranges of this node's pods, where the other CNI does not use those of its Node object")
	flags.StringSliceVar(&f.serviceCIDRs, "service-cidrs", nil, "ranges of virtual addresses, besides the cluster's ServiceCIDR objects")
	flags.StringSliceVar(&f.nodePorts, "node-port-addresses", nil, "addresses that have node ports: primary (those of the Node object, default), all (but loopback), ranges; localhost adds 127.0.0.1 and ::1")
	flags.BoolVar(&f.externalIPs, "allow-external-ips", false, "serve what Services name in spec.externalIPs: whoever may write one can take any address outside (CVE-2020-8554)")
	flags.StringVar(&f.healthz, "healthz-bind-address", health.DefaultHealthzAddress, "where /healthz and /livez are; empty for nowhere")
	flags.StringVar(&f.metrics, "metrics-bind-address", health.DefaultMetricsAddress, "where /metrics and /proxyMode are; empty for nowhere")
	flags.IntVar(&f.mtu, "mtu", 0, "MTU of netctl0 (default 1500); no larger than that of pods")
	flags.BoolVar(&f.keep, "keep", false, "leave netctl0 and its routes at the end, for a proxy that is started anew")
	flags.StringVar(&f.stateDir, "state-dir", "/run/netctl", "where the cluster's last state is kept, with an API server")
	cmd.AddCommand(newProxyTable(io))
	return cmd
}

func serveProxy(ctx context.Context, io streams, f proxyFlags) error {
	log, err := newLogger(io.err, f.logLevel)
	if err != nil {
		return err
	}
	cfg := proxynode.Config{Node: f.node, MTU: f.mtu, Keep: f.keep, ProbeSocket: f.probeSocket, Log: log, ExternalIPs: f.externalIPs, Healthz: f.healthz, Metrics: f.metrics}
	if cfg.PodCIDRs, err = ranges("--pod-cidrs", f.podCIDRs); err == nil {
		cfg.ServiceCIDRs, err = ranges("--service-cidrs", f.serviceCIDRs)
	}
	if err == nil {
		cfg.NodePorts, err = proxy.ParseNodePortAddresses(f.nodePorts)
	}
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	p, err := f.openPart(f.node, filepath.Join(f.stateDir, "state"), proxyKinds(), log)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	cfg.Source, cfg.Servers = p.source, p.servers()
	if p.api != nil {
		cfg.Events = p.api
	}
	return proxynode.Run(ctx, cfg)
}

// ranges parses the values of a flag.
func ranges(flag string, texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s %q: use a range such as 10.96.0.0/12", flag, text)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s %s has host bits set: did you mean %s?", flag, p, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

func newProxyTable(io streams) *cobra.Command {
	var dir, node, output string
	cmd := &cobra.Command{
		Use:   "table",
		Short: "Show the services as a node translates them",
		Long: `Show the services as a node translates them: every virtual address with the
backends that its clients are spread over. It compiles the same table as the
agent, from a directory of manifests.`,
		Example: `  netctl proxy table --cluster-dir /etc/netctl/cluster --node node1`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("%w: -o %q: use json", errUsage, output)
			}
			state, err := readState(io.err, dir)
			if err != nil {
				return err
			}
			in := proxy.Input{Node: node, Services: state.Services, Slices: state.EndpointSlices, ServiceCIDRs: state.ServiceCIDRs, ExternalIPs: true}
			if n := state.Node(node); n != nil {
				in.Zone = n.Zone
			}
			table, problems := proxy.Compile(in)
			for _, p := range problems {
				fmt.Fprintln(io.err, "warning:", p)
			}
			rows := serviceRows(state, table)
			if output == "json" {
				return json.NewEncoder(io.out).Encode(rows)
			}
			return printServices(io.out, rows)
		},
	}
	cmd.Flags().StringVar(&dir, "cluster-dir", defaultClusterDir, "directory of manifests that is the cluster's state")
	cmd.Flags().StringVar(&node, "node", "", "the node whose view is shown")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	return cmd
}

// readState reads a directory once and warns of what is wrong in it.
func readState(w io.Writer, dir string) (*model.State, error) {
	state, problems, err := cluster.Read(dir)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's state: %w", err)
	}
	for _, p := range problems {
		fmt.Fprintln(w, "warning:", p.Error())
	}
	return state, nil
}

func serviceRows(state *model.State, table *proxy.Table) []serviceRow {
	rows := []serviceRow{}
	for _, svc := range state.Services {
		for _, addr := range svc.ClusterIPs {
			for _, p := range svc.Ports {
				f, kind := table.Frontend(packet.AddrFrom(addr), p.Port, uint8(p.Protocol))
				row := serviceRow{
					Service: svc.Name.String(), Port: p.Name, Verdict: kind.String(),
					Frontend: fmt.Sprintf("%s/%s", netip.AddrPortFrom(addr, p.Port), p.Protocol),
				}
				if f != nil {
					for _, b := range f.Backends() {
						row.Backends = append(row.Backends, netip.AddrPortFrom(b.Addr.Netip(), b.Port).String())
					}
				}
				rows = append(rows, row)
			}
		}
	}
	return rows
}

func printServices(w io.Writer, rows []serviceRow) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tPORT\tFRONTEND\tVERDICT\tBACKENDS")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.Service, r.Port, r.Frontend, r.Verdict, strings.Join(r.Backends, ","))
	}
	return t.Flush()
}

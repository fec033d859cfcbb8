package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy"
)

// serviceRow is one frontend as a node sees it.
type serviceRow struct {
	Service  string   `json:"service"`
	Port     string   `json:"port"`
	Frontend string   `json:"frontend"`
	Backends []string `json:"backends"`
	Verdict  string   `json:"verdict"`
}

func newProxy(io streams) *cobra.Command {
	var dir, node, output string
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Show the services as a node translates them",
		Long: `Show the services as a node translates them: every virtual address with the
backends that its clients are spread over. It compiles the same table as the
agent, from a directory of manifests.`,
		Example: `  netctl proxy --cluster-dir /etc/netctl/cluster --node node1`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("%w: -o %q: use json", errUsage, output)
			}
			state, err := readState(io.err, dir)
			if err != nil {
				return err
			}
			in := proxy.Input{Node: node, Services: state.Services, Slices: state.EndpointSlices, ServiceCIDRs: state.ServiceCIDRs}
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
	cmd.Flags().StringVar(&dir, "cluster-dir", "/etc/netctl/cluster", "directory of manifests that is the cluster's state")
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

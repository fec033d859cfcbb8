package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/internal/agent/status"
)

func newStatus(io streams) *cobra.Command {
	var dir, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what this node's agent does: ports, peers, addresses, drops by reason",
		Example: `  netctl status
  netctl status --state-dir /run/netctl-lab/lab/nodes/node1/run -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := status.Read(cmd.Context(), dir)
			if err != nil {
				return err
			}
			switch output {
			case "json":
				e := json.NewEncoder(io.out)
				e.SetIndent("", "  ")
				return e.Encode(s)
			case "":
				return printAgent(io.out, &s)
			default:
				return fmt.Errorf("%w: -o %q: use json", errUsage, output)
			}
		},
	}
	cmd.Flags().StringVar(&dir, "state-dir", "/run/netctl", "the agent's state directory")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	return cmd
}

func printAgent(w io.Writer, s *status.Status) error {
	fmt.Fprintf(w, "node %s, state revision %d, pod MTU %d\n", s.Node, s.Revision, s.MTU)
	fmt.Fprintf(w, "forwarded %d packets, %d bytes; %d flows; drops: %s\n", s.Packets, s.Bytes, s.Flows, status.Summary(s.Drops))
	if s.PortsGone > 0 {
		fmt.Fprintf(w, "%d devices were deleted by somebody else while they were in use\n", s.PortsGone)
	}
	for _, p := range s.Pool {
		fmt.Fprintf(w, "%s addresses: %d used, %d cooling down, %d free of %d\n", p.Family, p.Used, p.Cooling, p.Free, p.Total)
	}
	fmt.Fprintf(w, "tunnel: %.1f datagrams a call sent, %.1f received; UDP GSO %s; UDP GRO %s; drops: %s\n",
		s.Tunnel.Sent(), s.Tunnel.Received(), s.Tunnel.UDPGSO, s.Tunnel.UDPGRO, status.Summary(s.Tunnel.Drops))
	fmt.Fprintf(w, "process %d: %d goroutines, %d open files, %d MiB of memory, pauses of %.2f ms at most (99%% within %.2f ms)\n",
		s.Process.PID, s.Process.Goroutines, s.Process.Files, s.Process.Resident>>20, s.Process.GC.Max, s.Process.GC.P99)
	fmt.Fprintf(w, "offloads of devices: %s\n", s.TUNOffload)
	fmt.Fprintf(w, "services: %s, %d sockets on this node; name server: %s; to the outside: %s", s.Services, s.Sockets, s.DNS, s.Egress)
	if s.Plugin != "" {
		fmt.Fprintf(w, "; plugin: %s", s.Plugin)
	}
	fmt.Fprintln(w)
	for _, name := range s.Before {
		fmt.Fprintf(w, "problem: the container runtime reads %s before netctl's configuration and does not use netctl: remove or rename it\n", name)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "problem: %s\n", p)
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "\nPORT\tKIND\tADDRESSES\tBANDWIDTH")
	for _, p := range s.Ports {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Name, p.Kind, list(p.Addresses), p.Limits)
	}
	fmt.Fprintln(t, "\nPEER\tENDPOINT\tHANDSHAKE\tMTU\tRECEIVED\tSENT\tALLOWED IPS")
	for _, p := range s.Peers {
		handshake := "never"
		if !p.LastHandshake.IsZero() {
			handshake = time.Since(p.LastHandshake).Round(time.Second).String() + " ago"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%s\n", p.Node, p.Endpoint, handshake, p.MTU, p.RxBytes, p.TxBytes, list(p.AllowedIPs))
	}
	return t.Flush()
}

func list[T fmt.Stringer](items []T) string {
	out := make([]string, 0, len(items))
	for _, i := range items {
		out = append(out, i.String())
	}
	return strings.Join(out, ",")
}

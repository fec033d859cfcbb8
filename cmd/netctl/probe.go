package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/internal/agent/probe"
)

func newProbe(streams) *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "probe live|ready",
		Short: "Ask an agent's process whether it is alive or ready; the exit code is the answer",
		Long: `Ask an agent's process whether it is alive or ready. The exit code is the answer,
and standard error says why not. It is what the DaemonSet's probes run.`,
		Example:   `  netctl probe ready --socket=/run/netctl-pod/probe.sock`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{string(probe.Live), string(probe.Ready)},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := probe.Ask(cmd.Context(), socket, probe.Question(args[0])); err != nil {
				return fmt.Errorf("agent: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "/run/netctl-pod/probe.sock", "the process' --probe-socket")
	return cmd
}

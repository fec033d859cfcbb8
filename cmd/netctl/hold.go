package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/internal/holder"
)

func newHold(io streams) *cobra.Command {
	var socket, logLevel string
	var now bool
	cmd := &cobra.Command{
		Use:   "hold [--now] [--socket=PATH] -- COMMAND [ARG...]",
		Short: "Keep the descriptors of this node's agent, and start COMMAND when it dies",
		Long: `Keep copies of the descriptors of this node's agent (the pods' devices, the tunnel's
sockets), so that they outlive its process, and start COMMAND, which is an agent,
at once when it dies. Packets wait in the devices' queues meanwhile.

With --now it is the parent of the agent: it starts COMMAND itself, starts it again
when it dies, and ends with it. Without, it stands beside an agent that somebody
else starts, which finds it at --socket; COMMAND then stands in until that one is
back.`,
		Example: `  netctl hold --now -- netctl agent --config=/etc/netctl/config.yaml
  netctl hold --socket=/run/netctl/holders/pod.sock -- netctl agent --stand-in --config=/etc/netctl/config.yaml`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !now && socket == "" {
				return fmt.Errorf("%w: --socket says where the agent finds its holder; without one give --now", errUsage)
			}
			log, err := newLogger(io.err, logLevel)
			if err != nil {
				return err
			}
			s := holder.NewSupervisor(args, now, log.With("part", "holder"))
			s.Socket = socket
			return hold(cmd.Context(), s)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVar(&now, "now", false, "start COMMAND now, and end with it")
	cmd.Flags().StringVar(&socket, "socket", "", "where agents find the holder")
	cmd.Flags().StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// hold runs a holder and its workers until the context ends.
func hold(ctx context.Context, s *holder.Supervisor) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	if s.Socket != "" {
		l, err := holder.Listen(s.Socket)
		if err != nil {
			return err
		}
		g.Go(func() error { return s.Holder.Serve(ctx, l) })
	}
	g.Go(func() error {
		defer cancel()
		return s.Run(ctx)
	})
	err := g.Wait()
	s.Holder.Close()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

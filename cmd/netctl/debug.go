package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/internal/agent/status"
)

func newDebug(io streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Look inside this node's agent",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPprof(io))
	return cmd
}

func newPprof(io streams) *cobra.Command {
	var dir, file string
	var during time.Duration
	cmd := &cobra.Command{
		Use:   "pprof PROFILE",
		Short: "Fetch a profile of this node's agent",
		Long: `Fetch a profile of this node's agent over the socket in its state directory, which
is root's alone; agents listen for this nowhere else. PROFILE is profile (of the
CPU, for 30 seconds unless --seconds says otherwise), trace, heap, allocs,
goroutine, threadcreate, block or mutex. With --seconds, the latter are what came
about in that time. Read them with 'go tool pprof' and 'go tool trace'.`,
		Example: `  netctl debug pprof profile --seconds 10s --file cpu.pprof
  netctl debug pprof heap | go tool pprof -top -
  curl --unix-socket /run/netctl/status.sock 'http://agent/debug/pprof/goroutine?debug=2'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if during < 0 {
				return fmt.Errorf("%w: --seconds %s: want a time such as 10s", errUsage, during)
			}
			return fetchProfile(cmd.Context(), io, profileRequest{dir: dir, name: args[0], file: file, during: during})
		},
	}
	cmd.Flags().StringVar(&dir, "state-dir", "/run/netctl", "the agent's state directory")
	cmd.Flags().StringVarP(&file, "file", "f", "", "where to write it (default standard output)")
	cmd.Flags().DurationVar(&during, "seconds", 0, "for how long to watch, such as 10s")
	return cmd
}

type profileRequest struct {
	dir, name, file string
	during          time.Duration
}

func fetchProfile(ctx context.Context, io streams, r profileRequest) error {
	if r.file == "" {
		return status.Profile(ctx, io.out, r.dir, r.name, r.during)
	}
	f, err := os.OpenFile(r.file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write the profile: %w", err)
	}
	err = status.Profile(ctx, f, r.dir, r.name, r.during)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("write the profile: %w", cerr)
	}
	if err != nil {
		_ = os.Remove(r.file) // half of a profile is none
	}
	return err
}

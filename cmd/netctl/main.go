// Command netctl is Kubernetes networking in one binary: the node's agent, the
// CNI plugin, the lab and the tools that look into them. Each subcommand has a
// file of its own, which parses flags and constructs; nothing else in the
// project constructs across features.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/cni/shim"
)

// version is set by the build.
var version = "dev" // the linker sets it

// The exit codes: what was asked is done, it failed, it was asked wrongly.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	if shim.Invoked(os.Args[0], os.Getenv) {
		os.Exit(plugin())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends what the first did not
	code := run(ctx, os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr})
	stop()
	os.Exit(code)
}

// plugin runs the CNI plugin: netctl installed as one does what the small
// program does.
func plugin() int {
	return shim.Main(shim.Process{Name: os.Args[0], Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
}

// streams are a command's standard streams: results go to out, talk to err.
type streams struct {
	in  io.Reader
	out io.Writer
	err io.Writer
}

// exitCode ends the program with a command's own code, without a message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// errUsage marks errors that are about how netctl was called.
var errUsage = errors.New("usage")

func run(ctx context.Context, args []string, io streams) int {
	root := newRoot(io)
	root.SetArgs(args)
	began := false
	markBegin(root, &began)
	cmd, err := root.ExecuteContextC(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	if !began && !errors.Is(err, errUsage) {
		// What fails before a command has begun is how it was called.
		err = fmt.Errorf("%w: %w; see '%s --help'", errUsage, err, cmd.CommandPath())
	}
	_, _ = fmt.Fprintln(io.err, "netctl:", err)
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}

// markBegin has every command below cmd note that it has begun, which is after
// its flags and arguments were found good.
func markBegin(cmd *cobra.Command, began *bool) {
	if inner := cmd.RunE; inner != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			*began = true
			return inner(c, args)
		}
	}
	if inner := cmd.PersistentPreRunE; inner != nil {
		cmd.PersistentPreRunE = func(c *cobra.Command, args []string) error {
			err := inner(c, args)
			*began = err != nil // required flags are looked for only now
			return err
		}
	}
	for _, c := range cmd.Commands() {
		markBegin(c, began)
	}
}

func newRoot(io streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "netctl",
		Short: "Kubernetes networking in user space: CNI, overlay, service proxy and DNS in one binary",
		Example: `  netctl lab up                 a three-node cluster on this machine
  netctl agent --node=$(hostname) --cluster-dir=/etc/netctl/cluster --cluster-cidrs=10.128.0.0/16
  netctl ipam plan --cluster-cidr=10.128.0.0/9 --nodes=500`,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetOut(io.out)
	root.SetErr(io.err)
	root.SetIn(io.in)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w; see '%s --help'", errUsage, err, c.CommandPath())
	})
	root.AddCommand(newAgent(io), newHold(io), newProbe(io), newStatus(io), newDebug(io), newCNI(io), newProxy(io), newDNS(io), newIPAM(io), newLab(io), newInstall(io), newUninstall(io), newCleanup(io))
	return root
}

// newLogger makes the logger of a long-running command.
func newLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("%w: --log-level %q: use debug, info, warn or error", errUsage, level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

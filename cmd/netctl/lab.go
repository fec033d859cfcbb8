package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/netctl/netctl/internal/lab"
	"github.com/netctl/netctl/internal/model"
)

// labFlags are those of every lab command.
type labFlags struct {
	name string
	io   streams
}

func (f *labFlags) options() lab.Options { return lab.Options{Out: f.io.err} }

// open runs fn with the lab's lock held.
func (f *labFlags) open(fn func(*lab.Lab) error) error {
	l, err := lab.Open(f.name, f.options())
	if err != nil {
		return err
	}
	return errors.Join(fn(l), l.Close())
}

// create takes the lock of a lab that is to be made or removed.
func (f *labFlags) create(cfg lab.Config) (*lab.Lab, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	return lab.New(cfg, f.options())
}

func newLab(io streams) *cobra.Command {
	f := &labFlags{io: io}
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "A cluster on this machine: real namespaces, TUNs, WireGuard and CNI calls",
		Long: `A cluster on this machine, through real parts: every node is a network namespace
with an agent of its own, pods come from ordinary manifests, nodes speak WireGuard
to each other, and an outside host exists beyond them. As root, or without root
where the kernel allows user namespaces.`,
		Example: `  netctl lab up --nodes 3 -f nginx.yaml
  netctl lab status
  netctl lab exec nginx -- netctl lab fetch http://nginx
  netctl lab down`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Name() == "demo" && !cmd.Flags().Changed("name") {
				f.name = fmt.Sprintf("demo-%d", os.Getpid()%1e7) // several demos at once
			}
			return lab.EnterUserNamespace(cmd.Name(), f.name)
		},
	}
	cmd.PersistentFlags().StringVar(&f.name, "name", "lab", "name of the lab; labs of different names live side by side")
	cmd.AddCommand(labUp(f), labDown(f), labStatus(f), labExec(f), labApply(f), labDelete(f), labLogs(f), labDemo(f),
		labServe(io), labFetch(io), labSend(io), labPing(io), labContainer(), labHold())
	return cmd
}

// families reads --ipv6 and --dual-stack.
func families(ipv6, dual bool) lab.Families {
	switch {
	case dual:
		return lab.DualStack
	case ipv6:
		return lab.IPv6
	default:
		return lab.IPv4
	}
}

func labUp(f *labFlags) *cobra.Command {
	var cfg lab.Config
	var ipv6, dual bool
	var files []string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a lab up, with the objects of manifests if there are any",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			found, err := readManifests(files, f.io.in)
			if err != nil {
				return err
			}
			cfg.Name, cfg.Families = f.name, families(ipv6, dual)
			l, err := f.create(cfg)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, l.Close()) }()
			if err := l.Up(cmd.Context()); err != nil {
				return err
			}
			if err := l.Apply(cmd.Context(), found); err != nil {
				if cmd.Context().Err() != nil { // Ctrl-C: nothing stays
					return errors.Join(err, l.Down())
				}
				return fmt.Errorf("%w (the lab is up; 'netctl lab down --name %s' removes it)", err, f.name)
			}
			_, err = fmt.Fprintf(f.io.err, "lab %q is up: %d nodes; try 'netctl lab status', 'netctl lab exec POD -- CMD', 'netctl lab down'\n", f.name, cfg.Nodes)
			return err
		},
	}
	labUpFlags(cmd, &cfg, &ipv6, &dual)
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "manifest file or directory, - for standard input")
	return cmd
}

func labUpFlags(cmd *cobra.Command, cfg *lab.Config, ipv6, dual *bool) {
	cmd.Flags().IntVar(&cfg.Nodes, "nodes", 3, "number of nodes")
	cmd.Flags().BoolVar(ipv6, "ipv6", false, "an IPv6 cluster")
	cmd.Flags().BoolVar(dual, "dual-stack", false, "an IPv4 and IPv6 cluster")
	cmd.Flags().StringVar((*string)(&cfg.Egress), "egress", "", "the agents' own flag; with packets nodes forward (default the agents')")
	cmd.Flags().BoolVar(&cfg.ClaimBlocks, "claim-blocks", false, "nodes claim their pod ranges themselves instead of finding them on their Node object")
	cmd.MarkFlagsMutuallyExclusive("ipv6", "dual-stack")
}

func labDown(f *labFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take a lab down, also what a crash left of one",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := f.create(lab.Config{Name: f.name, Nodes: 1, Families: lab.IPv4})
			if err != nil {
				return err
			}
			return errors.Join(l.Down(), l.Close())
		},
	}
}

func labStatus(f *labFlags) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show nodes, pods and services",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return f.open(func(l *lab.Lab) error {
				s, err := l.Status()
				if err != nil {
					return err
				}
				switch output {
				case "json":
					e := json.NewEncoder(f.io.out)
					e.SetIndent("", "  ")
					return e.Encode(s)
				case "":
					return printStatus(f.io.out, s)
				default:
					return fmt.Errorf("%w: -o %q: use json", errUsage, output)
				}
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	return cmd
}

func printStatus(w io.Writer, s lab.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NODE\tADDRESSES\tPODS\tAGENT")
	for _, n := range s.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", n.Name, strings.Join(n.Addresses, ","), strings.Join(n.PodRanges, ","), n.Agent)
	}
	fmt.Fprintln(t, "\nPOD\tADDRESSES\tNODE\tSTATE")
	for _, p := range s.Pods {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Name, strings.Join(p.Addresses, ","), p.Node, p.State)
	}
	fmt.Fprintln(t, "\nSERVICE\tADDRESSES\tPORTS\tENDPOINTS")
	for _, v := range s.Services {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", v.Name, strings.Join(v.Addresses, ","), strings.Join(v.Ports, ","), strings.Join(v.Endpoints, ","))
	}
	return t.Flush()
}

func labExec(f *labFlags) *cobra.Command {
	var container string
	cmd := &cobra.Command{
		Use:   "exec POD|NODE|outside [-c CONTAINER] -- CMD [ARG...]",
		Short: "Run a command in a pod, on a node or on the outside host",
		Example: `  netctl lab exec web -- ip route
  netctl lab exec node1 -- ping -c1 10.128.1.3
  netctl lab exec outside -- sh`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var c *exec.Cmd
			err := f.open(func(l *lab.Lab) error {
				var err error
				c, err = l.Exec(args[0], container, args[1:], func(c *exec.Cmd) {
					c.Stdin, c.Stdout, c.Stderr = f.io.in, f.io.out, f.io.err
				})
				return err
			})
			if err != nil {
				return err
			}
			return waitFor(cmd.Context(), c)
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "container whose environment the command gets")
	return cmd
}

// waitFor waits for a command whose exit code becomes ours.
func waitFor(ctx context.Context, c *exec.Cmd) error {
	stop := context.AfterFunc(ctx, func() { _ = c.Process.Signal(os.Interrupt) })
	defer stop()
	err := c.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exitCode(max(exit.ExitCode(), 1))
	}
	return err
}

func labApply(f *labFlags) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Create or change what manifests say",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := readManifests(files, f.io.in)
			if err != nil {
				return err
			}
			return f.open(func(l *lab.Lab) error { return l.Apply(cmd.Context(), found) })
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "manifest file or directory, - for standard input")
	_ = cmd.MarkFlagRequired("filename") // the flag exists
	return cmd
}

func labDelete(f *labFlags) *cobra.Command {
	var files []string
	var namespace string
	cmd := &cobra.Command{
		Use:   "delete -f FILE | KIND NAME",
		Short: "Delete what manifests name, or one object",
		Example: `  netctl lab delete -f nginx.yaml
  netctl lab delete pod web`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 2) == (len(files) > 0) {
				return fmt.Errorf("%w: say either -f FILE or KIND NAME", errUsage)
			}
			found, err := readManifests(files, f.io.in)
			if err != nil {
				return err
			}
			return f.open(func(l *lab.Lab) error {
				if len(args) == 0 {
					return l.Delete(cmd.Context(), found)
				}
				kind, err := lab.Kind(args[0])
				if err != nil {
					return fmt.Errorf("%w: %w", errUsage, err)
				}
				return l.DeleteObject(cmd.Context(), kind, model.Name{Namespace: namespace, Name: args[1]})
			})
		},
	}
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "manifest file or directory, - for standard input")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the object")
	return cmd
}

func labLogs(f *labFlags) *cobra.Command {
	var container string
	cmd := &cobra.Command{
		Use:   "logs POD|NODE|outside [-c CONTAINER]",
		Short: "Show what a container, or a node's agent, has printed",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return f.open(func(l *lab.Lab) error { return l.Logs(f.io.out, args[0], container) })
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "container of the pod")
	return cmd
}

func labDemo(f *labFlags) *cobra.Command {
	var cfg lab.Config
	var ipv6, dual bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Bring a lab up, prove that it works, take it down",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Families = families(ipv6, dual)
			cfg.Name = f.name
			if err := cfg.Validate(); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return lab.Demo(cmd.Context(), cfg, f.io.out)
		},
	}
	labUpFlags(cmd, &cfg, &ipv6, &dual)
	return cmd
}

func labServe(io streams) *cobra.Command {
	var cfg lab.ServeConfig
	var answers []string
	cmd := &cobra.Command{
		Use:     "serve",
		Short:   "A server for tests that tells its hostname and node and the client's address",
		Example: `  netctl lab serve --http :80 --tcp :7 --udp :7`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(cfg.HTTP)+len(cfg.TCP)+len(cfg.UDP)+len(cfg.DNS) == 0 {
				cfg.HTTP = []string{":80"}
			}
			cfg.Log = io.err
			cfg.DNSAnswers = make(map[string][]netip.Addr)
			for _, a := range answers {
				name, text, _ := strings.Cut(a, "=")
				addr, err := netip.ParseAddr(text)
				if err != nil {
					return fmt.Errorf("%w: --dns-answer %q: use NAME=ADDRESS", errUsage, a)
				}
				name = dns.CanonicalName(name)
				cfg.DNSAnswers[name] = append(cfg.DNSAnswers[name], addr)
			}
			return lab.Serve(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringSliceVar(&cfg.HTTP, "http", nil, "addresses to serve HTTP at (default :80 when nothing is said)")
	cmd.Flags().StringSliceVar(&cfg.TCP, "tcp", nil, "addresses of a TCP echo server")
	cmd.Flags().StringSliceVar(&cfg.UDP, "udp", nil, "addresses of a UDP echo server")
	cmd.Flags().StringSliceVar(&cfg.DNS, "dns", nil, "addresses of a name server that knows the --dns-answer")
	cmd.Flags().StringSliceVar(&answers, "dns-answer", nil, "NAME=ADDRESS, repeatable")
	return cmd
}

func labFetch(io streams) *cobra.Command {
	var count int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "fetch URL",
		Short: "Ask a lab server over HTTP, each time on a new connection",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for range count {
				r, err := lab.Fetch(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if asJSON {
					err = json.NewEncoder(io.out).Encode(r)
				} else {
					_, err = fmt.Fprintln(io.out, r.Line())
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	cmd.Flags().IntVarP(&count, "count", "n", 1, "how many times")
	return cmd
}

func labSend(io streams) *cobra.Command {
	return &cobra.Command{
		Use:   "send tcp|udp ADDRESS:PORT TEXT",
		Short: "Send text to a lab echo server and check that it comes back",
		Args:  cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			line, err := lab.Send(cmd.Context(), args[0], args[1], args[2])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(io.out, line)
			return err
		},
	}
}

func labPing(io streams) *cobra.Command {
	return &cobra.Command{
		Use:   "ping ADDRESS|NAME",
		Short: "Send one ICMP echo request",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			took, err := lab.Ping(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(io.out, "reply from %s in %s\n", args[0], took)
			return err
		},
	}
}

// labContainer becomes a container's process; users never call it.
func labContainer() *cobra.Command {
	return &cobra.Command{
		Use: lab.ContainerCommand, Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return lab.ContainerMain(args[0]) },
	}
}

// labHold keeps the namespaces of a lab without root alive; users never call it.
func labHold() *cobra.Command {
	return &cobra.Command{
		Use: lab.HoldCommand, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return lab.HoldMain(cmd.Context()) },
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/dns/options"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/model"
)

type queryFlags struct {
	dnsFlags
	as      string
	timeout time.Duration
}

func newDNSQuery(io streams) *cobra.Command {
	var f queryFlags
	cmd := &cobra.Command{
		Use:   "query NAME [TYPE]",
		Short: "Show what a pod would be told of a name, and why",
		Long: `Show what a pod would be told of a name, and why: every name that a resolver tries
along the search path of a pod with dnsPolicy ClusterFirst, the answer to each, and
where it comes from. Names outside the cluster are asked from this host. The cluster's
state is read where 'netctl dns' reads it; nothing is asked of a running name server.`,
		Example: `  netctl dns query kubernetes --as default/web-0
  netctl dns query db.prod.svc.cluster.local. SRV --cluster-dir /etc/netctl/cluster`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd.Context(), io, args) },
	}
	f.bindPart(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.as, "as", "", "the pod that asks, as NAMESPACE/NAME or NAME in namespace default (default nobody: the name is taken as it is)")
	flags.StringVar(&f.domain, "cluster-domain", "", "domain of the cluster's names (default what the cluster says, else cluster.local)")
	flags.StringVar(&f.options, "options", "", "the name server's options")
	flags.StringSliceVar(&f.resolvConf, "resolv-conf", nil, "files that name the resolvers for other names (default /etc/resolv.conf)")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Second, "how long to wait for the cluster's state")
	return cmd
}

func (f *queryFlags) run(ctx context.Context, io streams, args []string) error {
	qtype := mdns.TypeA
	if len(args) > 1 {
		t, ok := mdns.StringToType[strings.ToUpper(args[1])]
		if !ok {
			return fmt.Errorf("%w: %q is no type of record", errUsage, args[1])
		}
		qtype = t
	}
	if !options.IsName(args[0]) {
		return fmt.Errorf("%w: %q is no domain name", errUsage, args[0])
	}
	log, err := newLogger(io.err, f.logLevel)
	if err != nil {
		return err
	}
	opts, err := options.Open(f.options, log)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	kinds := append(dnsKinds(new(options.Options)), "pods")
	p, err := f.openPart("", "", kinds, log)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	domain, err := f.clusterDomain(ctx, p)
	if err != nil {
		return err
	}
	s, err := firstState(ctx, p, f.timeout)
	if err != nil {
		return err
	}
	pod, err := podOf(s, f.as)
	if err != nil {
		return err
	}
	server, err := f.server(s, domain, opts.Options(), log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		_ = server.Run(ctx) // until it is cancelled
		close(ended)
	}()
	defer func() {
		cancel()
		<-ended // it was cancelled
	}()
	q := querier{server: server, io: io, qtype: qtype, domain: domain}
	if pod != nil {
		q.client = pod.Addresses
		q.namespace = pod.Name.Namespace
		fmt.Fprintf(io.out, "pod %s, with dnsPolicy ClusterFirst\n", pod.Name)
	}
	return q.walk(args[0])
}

// server returns a name server for a State.
func (f *queryFlags) server(s *model.State, domain string, o *options.Options, log *slog.Logger) (*dns.Server, error) {
	upstreams := dns.NewResolvConf(dns.ResolvConfConfig{Paths: f.resolvConf, Logger: log})
	spaces := dns.Namespaces(s.Pods)
	server := dns.New(dns.Config{
		Upstreams: upstreams.Upstreams, Namespace: func(a netip.Addr) string { return spaces[a] }, Logger: log,
	})
	if err := server.Configure(o); err != nil {
		return nil, err
	}
	in := dns.InputOf(s)
	in.Domain, in.Server = domain, settings.DNSService()
	in.Configure(o)
	if svc := s.Service(in.Server); svc != nil {
		in.Addresses = svc.ClusterIPs
	}
	server.Publish(dns.Compile(in))
	return server, nil
}

// firstState returns the first complete State.
func firstState(ctx context.Context, p part, limit time.Duration) (*model.State, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var s *model.State
	err := p.source.Run(ctx, func(next *model.State) {
		if s = next; s.Synced {
			cancel()
		}
	})
	if s != nil && s.Synced {
		return s, nil
	}
	return nil, fmt.Errorf("the cluster's state was not complete within %s: %w", limit, err)
}

// podOf returns the pod of a name; nil for no name.
func podOf(s *model.State, text string) (*model.Pod, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // nobody asks, and that is fine
	}
	ns, name, ok := strings.Cut(text, "/")
	if !ok {
		ns, name = "default", text
	}
	i := slices.IndexFunc(s.Pods, func(p *model.Pod) bool { return p.Name == model.Name{Namespace: ns, Name: name} })
	if i < 0 {
		return nil, fmt.Errorf("--as %s: the cluster has no pod %s/%s", text, ns, name)
	}
	return s.Pods[i], nil
}

// querier asks a server in a pod's place.
type querier struct {
	server            *dns.Server
	io                streams
	client            []netip.Addr
	namespace, domain string
	qtype             uint16
}

// ndots is what the kubelet writes into a pod's resolv.conf.
const ndots = 5

// walk asks for every name of the search path, as a resolver does, up to the first
// that exists.
func (q *querier) walk(name string) error {
	var names []string
	if q.namespace != "" && !strings.HasSuffix(name, ".") {
		for _, d := range []string{q.namespace + ".svc." + q.domain, "svc." + q.domain, q.domain} {
			names = append(names, name+"."+d+".")
		}
	}
	whole := mdns.Fqdn(name)
	if strings.Count(name, ".") >= ndots {
		names = append([]string{whole}, names...)
	} else {
		names = append(names, whole)
	}
	for _, n := range names {
		m, err := q.ask(n)
		if err != nil {
			return err
		}
		if m.Rcode != mdns.RcodeNameError {
			return nil
		}
	}
	return nil
}

// ask asks for one name and prints what is answered.
func (q *querier) ask(name string) (*mdns.Msg, error) {
	var from netip.Addr
	if len(q.client) > 0 {
		from = q.client[0]
	}
	m := new(mdns.Msg)
	m.SetQuestion(name, q.qtype)
	m.SetEdns0(dns.MaxUDP, false)
	query, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	reply, st := q.server.Answer(from, query, false, nil)
	if st == dns.Forward {
		got := make(chan []byte, 1)
		q.server.Forward(from, query, false, func(b []byte) { got <- slices.Clone(b) })
		reply = <-got
	}
	out := new(mdns.Msg)
	if len(reply) == 0 {
		return nil, errors.New("the name server has no answer")
	}
	if err := out.Unpack(reply); err != nil {
		return nil, fmt.Errorf("the answer to %s: %w", name, err)
	}
	fmt.Fprintf(q.io.out, "\n%s %s: %s\n", name, mdns.TypeToString[q.qtype], mdns.RcodeToString[out.Rcode])
	for _, why := range q.server.Explain(from, name, q.qtype) {
		fmt.Fprintln(q.io.out, "  because", why)
	}
	for _, rr := range out.Answer {
		fmt.Fprintln(q.io.out, "  "+strings.Join(strings.Fields(rr.String()), " "))
	}
	return out, nil
}

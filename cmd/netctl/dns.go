package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/dns/options"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/dnsnode"
)

type dnsFlags struct {
	partFlags
	domain, stateDir   string
	options, metrics   string
	listen, resolvConf []string
	drain              time.Duration
}

// dnsKinds are what the name server reads of an API server.
func dnsKinds(o *options.Options) []string {
	kinds := []string{"namespaces", "nodes", "services", "endpointslices", "servicecidrs"}
	if o.NeedPods() {
		kinds = append(kinds, "pods")
	}
	return kinds
}

func newDNS(io streams) *cobra.Command {
	var f dnsFlags
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Serve the cluster's names on sockets, without the rest of netctl",
		Long: `Serve the cluster's names on sockets, without the rest of netctl: in a Deployment
behind the Service kube-dns, on a node, or on a host that is none. The agent does
the same for its pods inside the datapath.`,
		Example: `  netctl dns --cluster-dir /etc/netctl/cluster --listen 127.0.0.1:5353
  netctl dns --listen 0.0.0.0:53,[::]:53 --probe-socket /run/netctl-pod/probe.sock --drain 5s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serveDNS(cmd.Context(), io, f) },
	}
	f.bindPart(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.domain, "cluster-domain", "", "domain of the cluster's names (default what the cluster says, else cluster.local)")
	flags.StringSliceVar(&f.listen, "listen", []string{"127.0.0.1:53"}, "addresses to answer at, UDP and TCP")
	flags.StringSliceVar(&f.resolvConf, "resolv-conf", nil, "files that name the resolvers for other names (default /etc/resolv.conf)")
	flags.StringVar(&f.options, "options", "", "file with upstreams, domains asked elsewhere, hosts and more, read again when it changes")
	flags.StringVar(&f.metrics, "metrics", "", "address to serve Prometheus' metrics at, such as :9153 (default nowhere)")
	flags.DurationVar(&f.drain, "drain", 0, "how long to go on answering when told to end, no longer ready")
	flags.StringVar(&f.stateDir, "state-dir", "", "where the cluster's last state is kept, with an API server (default nowhere)")
	cmd.AddCommand(newDNSImport(io), newDNSQuery(io))
	return cmd
}

func serveDNS(ctx context.Context, io streams, f dnsFlags) error {
	log, err := newLogger(io.err, f.logLevel)
	if err != nil {
		return err
	}
	var addrs []netip.AddrPort
	for _, s := range f.listen {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			return fmt.Errorf("%w: --listen %q: use an address and port such as 127.0.0.1:5353", errUsage, s)
		}
		addrs = append(addrs, a)
	}
	if f.drain < 0 {
		return fmt.Errorf("%w: --drain %s: want 0 or more", errUsage, f.drain)
	}
	if f.apiServer == "" {
		f.apiServer = f.virtualServer()
	}
	cache := ""
	if f.stateDir != "" {
		cache = filepath.Join(f.stateDir, "state")
	}
	opts, err := options.Open(f.options, log)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	p, err := f.openPart("", cache, dnsKinds(opts.Options()), log)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	cfg := dnsnode.Config{
		Source: p.source, Domain: func(ctx context.Context) (string, error) { return f.clusterDomain(ctx, p) },
		Listen: addrs, ResolvConf: f.resolvConf, Drain: f.drain, ProbeSocket: f.probeSocket,
		Options: opts, Metrics: f.metrics, Version: version, Log: log,
	}
	return dnsnode.Run(ctx, cfg)
}

// clusterDomain returns the domain of the cluster's names.
func (f *dnsFlags) clusterDomain(ctx context.Context, p part) (string, error) {
	if f.domain != "" || p.api == nil {
		return settings.Domain(f.domain, ""), nil
	}
	s, err := p.api.Settings(ctx)
	return settings.Domain("", s.DNSDomain), err
}

// virtualServer returns the virtual address of the API server that a pod is told,
// "" where there is something better. A node's own network must not be started by
// it; a name server that is a pod like others may.
func (f *dnsFlags) virtualServer() string {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if _, err := os.Stat(f.kubeletConf); err == nil || host == "" || port == "" {
		return ""
	}
	return "https://" + net.JoinHostPort(host, port)
}

package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

type dnsFlags struct {
	dir, domain, logLevel string
	listen, resolvConf    []string
}

func newDNS(io streams) *cobra.Command {
	var f dnsFlags
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Serve the cluster's names on sockets, without the rest of netctl",
		Long: `Serve the cluster's names on sockets, without the rest of netctl. The agent does
the same for its pods inside the datapath; this is for hosts that are not nodes.`,
		Example: `  netctl dns --cluster-dir /etc/netctl/cluster --listen 127.0.0.1:5353`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return serveDNS(cmd.Context(), io, f) },
	}
	cmd.Flags().StringVar(&f.dir, "cluster-dir", "/etc/netctl/cluster", "directory of manifests that is the cluster's state")
	cmd.Flags().StringVar(&f.domain, "cluster-domain", "cluster.local", "domain of the cluster's names")
	cmd.Flags().StringSliceVar(&f.listen, "listen", []string{"127.0.0.1:53"}, "addresses to answer at, UDP and TCP")
	cmd.Flags().StringSliceVar(&f.resolvConf, "resolv-conf", nil, "files that name the resolvers for other names (default /etc/resolv.conf)")
	cmd.Flags().StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
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
	source, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: f.dir, Logger: log})
	if err != nil {
		return fmt.Errorf("%w: --cluster-dir: %w", errUsage, err)
	}
	upstreams := dns.NewResolvConf(dns.ResolvConfConfig{Paths: f.resolvConf, Logger: log})
	server := dns.New(dns.Config{Upstreams: upstreams.Upstreams, Logger: log})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return source.Run(ctx, func(s *model.State) {
			in := dns.InputOf(s)
			in.Domain, in.Previous = f.domain, server.Zone()
			server.Publish(dns.Compile(in))
		})
	})
	g.Go(func() error { return server.Run(ctx) })
	g.Go(func() error {
		return server.Listen(ctx, addrs, func(at []netip.AddrPort) {
			var list []string
			for _, a := range at {
				list = append(list, a.String())
			}
			log.Info("name server listens", "addresses", strings.Join(list, ","))
		})
	})
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

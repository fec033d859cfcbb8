package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	mdns "github.com/miekg/dns"
)

// coreDNSVariable names a CoreDNS that is built already.
const coreDNSVariable = "NETCTL_COREDNS"

// buildCoreDNS returns the path of CoreDNS, which it builds where nobody says.
func buildCoreDNS(ctx context.Context, dir string) (string, error) {
	if path := os.Getenv(coreDNSVariable); path != "" {
		return path, nil
	}
	path := filepath.Join(dir, "coredns")
	cmd := exec.CommandContext(ctx, "go", "build", "-C", "test/dns/coredns", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build CoreDNS: %w\n%s", err, out)
	}
	return path, nil
}

// process is a server that runs beside us.
type process struct {
	cmd  *exec.Cmd
	log  bytes.Buffer
	addr netip.AddrPort
}

// end ends the process and waits.
func (p *process) end() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	timer := time.AfterFunc(10*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	_ = p.cmd.Wait() // it was told to
}

// startServer starts a server that answers at addr and waits until it does.
func startServer(ctx context.Context, addr netip.AddrPort, name, path string, args ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, path, args...), addr: addr} //nolint:gosec // the programs that are compared
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	m := new(mdns.Msg)
	m.SetQuestion("dns-version.cluster.local.", mdns.TypeTXT)
	for range 600 {
		if r, err := mdns.ExchangeContext(ctx, m, addr.String()); err == nil && r.Rcode == mdns.RcodeSuccess && len(r.Answer) > 0 {
			m.SetQuestion("kube-dns.kube-system.svc.cluster.local.", mdns.TypeA) // and the objects are there
			if r, err := mdns.ExchangeContext(ctx, m, addr.String()); err == nil && len(r.Answer) > 0 {
				return p, nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.end()
	return nil, fmt.Errorf("%s does not answer at %s; it said:\n%s", name, addr, p.log.String())
}

// corefile is kubeadm's, with our addresses.
const corefile = `.:%d {
    bind 127.0.0.1
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       endpoint %s
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus 127.0.0.1:0
    forward . %s {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
`

// startCoreDNS starts CoreDNS for a cluster.
func startCoreDNS(ctx context.Context, path, dir, apiURL, upstream string) (*process, error) {
	addr, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "Corefile")
	if err := os.WriteFile(conf, fmt.Appendf(nil, corefile, addr.Port(), apiURL, upstream), 0o600); err != nil {
		return nil, err
	}
	return startServer(ctx, addr, "CoreDNS", path, "-conf", conf)
}

// freePort returns a loopback address that is free for UDP and TCP at this moment.
func freePort(ctx context.Context) (netip.AddrPort, error) {
	var lc net.ListenConfig
	for range 10 {
		l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return netip.AddrPort{}, err
		}
		addr := netip.MustParseAddrPort(l.Addr().String())
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		_ = l.Close()
		if err == nil {
			_ = c.Close()
			return addr, nil
		}
	}
	return netip.AddrPort{}, errors.New("no port is free for UDP and TCP")
}

// serveAPI serves a until the returned function is called.
func serveAPI(ctx context.Context, a *api) (url string, stop func(), err error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: a, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }() // until it is closed
	return "http://" + l.Addr().String(), func() { _ = s.Close() }, nil
}

// serveOutside is the resolver for names outside: a few exist.
func serveOutside() (addr string, stop func(), err error) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return "", nil, err
	}
	s := &mdns.Server{PacketConn: c, Handler: mdns.HandlerFunc(outsideAnswer)}
	go func() { _ = s.ActivateAndServe() }() // until it is shut down
	return c.LocalAddr().String(), func() { _ = s.Shutdown() }, nil
}

func outsideAnswer(w mdns.ResponseWriter, q *mdns.Msg) {
	m := new(mdns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	record := "interwebs.test. 300 IN SOA ns.interwebs.test. root.interwebs.test. 1 7200 1800 86400 30"
	name := mdns.CanonicalName(q.Question[0].Name)
	if name == "ext.interwebs.test." && q.Question[0].Qtype == mdns.TypeA {
		record = q.Question[0].Name + " 300 IN A 192.0.2.53"
	}
	rr, err := mdns.NewRR(record)
	if err != nil {
		panic(err) // a constant
	}
	if rr.Header().Rrtype == mdns.TypeSOA {
		m.Ns = append(m.Ns, rr)
		if name != "ext.interwebs.test." {
			m.Rcode = mdns.RcodeNameError
		}
	} else {
		m.Answer = append(m.Answer, rr)
	}
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(1232, o.Do())
	}
	_ = w.WriteMsg(m) // who asked is gone
}

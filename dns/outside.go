package dns

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/netctl/netctl/dns/options"
)

// outside is what the options say, compiled: where names are asked, and which names
// are ours besides the cluster's. It is immutable.
type outside struct {
	options *options.Options
	plain   bool // nothing but forwarding is configured
	root    route
	zones   map[string]*route // by name on the wire
	hosts   map[string]addrs
	names   map[netip.Addr][]string // of hosts, for PTR questions
	rewrite []rewrite
	paths   map[string]bool // namespaces whose search path is followed here
	allPath bool
	logs    logLevel
	logOnly map[string]bool // namespaces; empty: all
	stale   time.Duration
}

// route is where the names of a domain are asked.
type route struct {
	resolvers bool // the host's
	upstreams []options.Upstream
	policy    options.Policy
}

// rewrite is one name that stands for another.
type rewrite struct {
	from, to string // on the wire
	suffix   bool
}

type logLevel uint8

const (
	logNone logLevel = iota
	logErrors
	logDenial
	logAll
)

// Configure makes the server work by these options from now on. What was learned
// from upstreams is forgotten. Options that Validate finds wrong are refused, and so
// are upstreams that Config.Refuse refuses.
func (s *Server) Configure(o *options.Options) error {
	if err := o.Validate(); err != nil {
		return err
	}
	var errs []error
	refuse := func(what string, list []options.Upstream) {
		for _, u := range list {
			if s.refuse == nil {
				continue
			}
			if err := s.refuse(u.Addr.Addr()); err != nil {
				errs = append(errs, fmt.Errorf("upstream %s%s: %w", u, what, err))
			}
		}
	}
	refuse("", o.Upstreams)
	for _, z := range o.Zones {
		refuse(" of zone "+z.Name, z.Upstreams)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	x := newOutside(o)
	s.rules.Store(x)
	s.forward.cache.clear()
	s.forward.streams.close()
	return nil
}

// newOutside compiles options that are valid.
func newOutside(o *options.Options) *outside {
	x := &outside{
		options: o, root: route{resolvers: len(o.Upstreams) == 0, upstreams: o.Upstreams, policy: o.Policy},
		zones: map[string]*route{}, hosts: map[string]addrs{}, names: map[netip.Addr][]string{}, paths: map[string]bool{}, logOnly: map[string]bool{},
		logs:  map[options.Log]logLevel{options.LogErrors: logErrors, options.LogDenial: logDenial, options.LogAll: logAll}[o.Log],
		stale: max(0, time.Duration(cmp.Or(o.Cache.ServeStale, options.Duration(staleFor)))),
	}
	for _, z := range o.Zones {
		if n := wireOf(z.Name); n != "" {
			x.zones[n] = &route{upstreams: z.Upstreams, policy: z.Policy}
		}
	}
	x.addHosts(o.Hosts)
	for _, r := range o.Rewrites {
		from, to := wireOf(r.Name), wireOf(r.To)
		if from != "" && to != "" {
			x.rewrite = append(x.rewrite, rewrite{from: from, to: to, suffix: r.Suffix})
		}
	}
	for _, ns := range o.Autopath {
		x.allPath = x.allPath || ns == "*"
		x.paths[strings.ToLower(ns)] = true
	}
	for _, ns := range o.LogNamespaces {
		x.logOnly[ns] = true
	}
	x.plain = len(x.hosts) == 0 && len(x.rewrite) == 0 && len(x.paths) == 0
	return x
}

func (x *outside) addHosts(list []options.Host) {
	byName := map[string]*gather{}
	for _, h := range list {
		a := h.Address.Unmap()
		for _, text := range h.Names {
			n := wireOf(text)
			if n == "" {
				continue
			}
			if byName[n] == nil {
				byName[n] = &gather{}
			}
			byName[n].add(a)
			if full := strings.TrimSuffix(text, ".") + "."; !slices.Contains(x.names[a], full) {
				x.names[a] = append(x.names[a], full)
			}
		}
	}
	for n, g := range byName {
		x.hosts[n] = g.addrs()
	}
}

// wireOf returns a name on the wire in lower case, "" if it is none.
func wireOf(s string) string {
	var n name
	if !readName(&n, strings.TrimSuffix(s, ".")+".") {
		return ""
	}
	return string(n.wire[:n.len])
}

// route returns where a name is asked: at its longest domain that is configured.
func (x *outside) route(wire string) *route {
	if len(x.zones) > 0 {
		for p := 0; p < len(wire) && wire[p] != 0; p += 1 + int(wire[p]) {
			if rt := x.zones[wire[p:]]; rt != nil {
				return rt
			}
		}
	}
	return &x.root
}

// follows reports whether the search path of a namespace's pods is followed here.
func (x *outside) follows(namespace string) bool {
	return namespace != "" && (x.allPath || x.paths[namespace])
}

// target returns the name that a name stands for, "" for itself.
func (x *outside) target(n *name) string {
	for i := range x.rewrite {
		r := &x.rewrite[i]
		whole := string(n.wire[:n.len])
		if whole == r.from {
			return r.to
		}
		if !r.suffix || len(r.from) >= n.len || whole[n.len-len(r.from):] != r.from {
			continue
		}
		left := n.len - len(r.from)
		for k := range n.labels { // only at a label's start
			if int(n.off[k]) == left && left+len(r.to) <= maxName {
				return whole[:left] + r.to
			}
		}
	}
	return ""
}

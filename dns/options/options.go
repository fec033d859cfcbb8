// Package options is what a name server can be told beyond the cluster's names:
// where other names are asked, names of its own, and how it answers.
//
//	dns.yaml ──Read──▶ Options ──Validate──▶ the name server
//	Corefile ──dns/corefile──▶ Options ──Encode──▶ dns.yaml
//
// Options are plain values, and their zero value is how kubeadm sets CoreDNS up:
// pods insecure, a TTL of 30, other names to the resolvers of /etc/resolv.conf.
// A File is read again when it changes; what is wrong with it is said once, and
// what was read before holds on.
//
// How to test. Tables; the names and addresses are parsed by their libraries.
package options

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
	"sigs.k8s.io/yaml"
)

// Options are the keys of the file.
type Options struct {
	// TTL of the cluster's names in seconds; 0 is 30.
	TTL uint32 `json:"ttl,omitempty"`
	// NegativeTTL is for how many seconds clients may remember that a name of the
	// cluster is missing; 0 is 5.
	NegativeTTL uint32 `json:"negativeTTL,omitempty"`
	// Pods says how names of pods' addresses are answered; "" is insecure.
	Pods Pods `json:"pods,omitempty"`

	// Upstreams are where names outside are asked; none: the resolvers of
	// resolv.conf.
	Upstreams []Upstream `json:"upstreams,omitempty"`
	// Policy says in which order; "" is sequential.
	Policy Policy `json:"policy,omitempty"`
	// MaxConcurrent bounds the questions that wait for upstreams; 0 is 1000. It is
	// read when the server starts.
	MaxConcurrent int `json:"maxConcurrent,omitempty"`
	// Zones are asked elsewhere, the longest name that fits counts.
	Zones []Zone `json:"zones,omitempty"`
	// Hosts are names of this server's own, before all others.
	Hosts []Host `json:"hosts,omitempty"`
	// Rewrites answer for one name what another one has; the first that fits counts.
	Rewrites []Rewrite `json:"rewrites,omitempty"`

	Cache Cache `json:"cache"`
	// Log says which questions are logged; "" is none.
	Log Log `json:"log,omitempty"`
	// LogNamespaces limits the log to pods of these namespaces.
	LogNamespaces []string `json:"logNamespaces,omitempty"`
	// Autopath has the search path of these namespaces' pods followed by the
	// server: "*" is every namespace.
	Autopath []string `json:"autopath,omitempty"`
}

// Pods says how names like 10-1-2-3.default.pod.cluster.local are answered.
type Pods string

// The modes of CoreDNS' kubernetes plugin.
const (
	PodsInsecure Pods = "insecure"
	PodsVerified Pods = "verified"
	PodsDisabled Pods = "disabled"
)

// Policy orders the upstreams of a question.
type Policy string

// The policies of CoreDNS' forward plugin.
const (
	Sequential Policy = "sequential"
	Random     Policy = "random"
	RoundRobin Policy = "round_robin"
)

// Log chooses questions by their answers.
type Log string

// What can be logged.
const (
	LogNone   Log = "none"
	LogErrors Log = "errors" // no answer could be given: SERVFAIL, REFUSED, FORMERR, NOTIMP
	LogDenial Log = "denial" // the name or the type does not exist, and errors
	LogAll    Log = "all"
)

// Zone says where a domain is asked.
type Zone struct {
	Name string `json:"name"`
	// Upstreams of the domain; none: its names are refused.
	Upstreams []Upstream `json:"upstreams"`
	Policy    Policy     `json:"policy,omitempty"`
}

// Host is an address and its names, as a line of /etc/hosts.
type Host struct {
	Address netip.Addr `json:"address"`
	Names   []string   `json:"names"`
}

// Rewrite has Name answered with what To has, under the name that was asked.
type Rewrite struct {
	Name string `json:"name"`
	To   string `json:"to"`
	// Suffix replaces the end of longer names, too.
	Suffix bool `json:"suffix,omitempty"`
}

// Cache is how long answers from outside are kept.
type Cache struct {
	MaxTTL         uint32 `json:"maxTTL,omitempty"`         // seconds; 0 is 3600
	MaxNegativeTTL uint32 `json:"maxNegativeTTL,omitempty"` // seconds; 0 is 30
	// ServeStale is for how long an answer is used beyond its time while nobody
	// gives a newer one; 0 is an hour, below 0 never.
	ServeStale Duration `json:"serveStale,omitempty"`
	// NoPrefetch leaves names that are asked often to expire.
	NoPrefetch bool `json:"noPrefetch,omitempty"`
}

// Duration is a time.Duration that is written as text.
type Duration time.Duration

// UnmarshalJSON reads text such as "1h30m".
func (d *Duration) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("%s: want a duration in quotes, such as \"1h\"", data)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}

// MarshalJSON writes it as UnmarshalJSON reads it.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// Decode reads a file's content. A key that it does not know is an error that names
// the key.
func Decode(data []byte) (*Options, error) {
	o := new(Options)
	if err := yaml.UnmarshalStrict(data, o); err != nil {
		return nil, err
	}
	return o, o.Validate()
}

// NeedPods reports whether the options need to know the cluster's pods.
func (o *Options) NeedPods() bool {
	return o.Pods == PodsVerified || len(o.Autopath) > 0 || len(o.LogNamespaces) > 0
}

// Encode writes a file's content.
func (o *Options) Encode() ([]byte, error) { return yaml.Marshal(o) }

// The bounds of what is configured: more is a mistake, and costs every question.
const (
	maxTTL       = 3600
	maxUpstreams = 15
	maxRewrites  = 64
	maxNames     = 100_000
)

// Validate reports everything that is wrong.
func (o *Options) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.TTL > maxTTL || o.NegativeTTL > maxTTL {
		add("ttl %d, negativeTTL %d: at most %d seconds", o.TTL, o.NegativeTTL, maxTTL)
	}
	switch o.Pods {
	case "", PodsInsecure, PodsVerified, PodsDisabled:
	default:
		add("pods %q: want insecure, verified or disabled", o.Pods)
	}
	switch o.Log {
	case "", LogNone, LogErrors, LogDenial, LogAll:
	default:
		add("log %q: want none, errors, denial or all", o.Log)
	}
	if o.MaxConcurrent < 0 {
		add("maxConcurrent %d: want 1 or more, or 0 for 1000", o.MaxConcurrent)
	}
	errs = append(errs, validUpstreams("upstreams", o.Upstreams, o.Policy)...)
	seen := map[string]bool{}
	for _, z := range o.Zones {
		key := strings.ToLower(mdns.Fqdn(z.Name))
		if !IsName(z.Name) {
			add("zone %q: want a domain name", z.Name)
		} else if seen[key] {
			add("zone %q stands there twice", z.Name)
		}
		seen[key] = true
		errs = append(errs, validUpstreams("upstreams of zone "+z.Name, z.Upstreams, z.Policy)...)
	}
	return errors.Join(append(errs, o.validateNames()...)...)
}

// validateNames looks at hosts and rewrites.
func (o *Options) validateNames() (errs []error) {
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	names := 0
	for _, h := range o.Hosts {
		names += len(h.Names)
		if !h.Address.IsValid() || h.Address.Zone() != "" {
			add("host %v: want an IP address", h.Names)
		}
		if len(h.Names) == 0 {
			add("host %s has no names", h.Address)
		}
		for _, n := range h.Names {
			if !IsName(n) {
				add("host %s: %q is no name", h.Address, n)
			}
		}
	}
	if names > maxNames {
		add("%d names of hosts: at most %d", names, maxNames)
	}
	if len(o.Rewrites) > maxRewrites {
		add("%d rewrites: at most %d, each is looked at for every question", len(o.Rewrites), maxRewrites)
	}
	for _, r := range o.Rewrites {
		if !IsName(r.Name) || !IsName(r.To) {
			add("rewrite %q to %q: want two domain names", r.Name, r.To)
		}
	}
	return errs
}

func validUpstreams(what string, list []Upstream, p Policy) (errs []error) {
	if len(list) > maxUpstreams {
		errs = append(errs, fmt.Errorf("%s: %d of them, at most %d", what, len(list), maxUpstreams))
	}
	switch p {
	case "", Sequential, Random, RoundRobin:
	default:
		errs = append(errs, fmt.Errorf("policy %q of %s: want sequential, random or round_robin", p, what))
	}
	return errs
}

// IsName reports whether s is a domain name other than the root.
func IsName(s string) bool {
	if s == "" || s == "." || strings.ContainsAny(s, " \t\r\n") {
		return false
	}
	_, ok := mdns.IsDomainName(s)
	return ok
}

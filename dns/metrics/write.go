package metrics

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Upstream is what is told of a server that names outside are asked at.
type Upstream struct {
	To            string
	Asked, Failed uint64
}

// Forwarding is what a server counts elsewhere.
type Forwarding struct {
	Hits, Misses, Entries, Evicted, Stale, Prefetched uint64
	Refused                                           uint64 // for want of room
	Upstreams                                         []Upstream
}

// Server labels what is written: CoreDNS names its listeners.
const server = `server="dns://:53",zone=".",view=""`

// Write writes everything in Prometheus' text format.
func (s *Set) Write(w io.Writer, version string, f Forwarding) error {
	b := &writer{Writer: bufio.NewWriter(w)}
	b.head("coredns_build_info", "gauge", "A metric with a constant '1' value labeled by version of the name server, which is netctl's.")
	b.line("coredns_build_info", fmt.Sprintf("version=%q", "netctl "+version), 1)
	s.writeQuestions(b)
	s.writeAnswers(b)
	b.head("coredns_dns_request_duration_seconds", "histogram", "How long requests took; of those answered from memory one in sixteen is measured and counts for sixteen.")
	b.durations("coredns_dns_request_duration_seconds", server, &s.times)
	b.head("coredns_kubernetes_dns_programming_duration_seconds", "histogram", "From hearing of a change of the cluster to answering with it.")
	b.durations("coredns_kubernetes_dns_programming_duration_seconds", `service_kind="all"`, &s.programming)
	s.writeForwarding(b, f)
	return b.Flush()
}

//nolint:gochecknoglobals // names known at compile time
var (
	protos   = [...]string{"udp", "tcp"}
	families = [...]string{"1", "2"}
)

func (s *Set) writeQuestions(b *writer) {
	b.head("coredns_dns_requests_total", "counter", "Questions by protocol, family and type.")
	for p, proto := range protos {
		for f, family := range families {
			for t := range known {
				if n := s.requests[p][f][t].Load(); n > 0 {
					b.line("coredns_dns_requests_total", server+`,proto="`+proto+`",family="`+family+`",type="`+known[t].name+`"`, n)
				}
			}
		}
	}
	b.head("coredns_dns_do_requests_total", "counter", "Questions with the DO bit.")
	var do uint64
	for p := range protos {
		for f := range families {
			do += s.do[p][f].Load()
		}
	}
	b.line("coredns_dns_do_requests_total", server, do)
	b.head("coredns_dns_request_size_bytes", "histogram", "Size of the questions.")
	for p, proto := range protos {
		b.sizes("coredns_dns_request_size_bytes", server+`,proto="`+proto+`"`, &s.sizesIn[p])
	}
}

func (s *Set) writeAnswers(b *writer) {
	b.head("coredns_dns_responses_total", "counter", "Answers by response code and by who gave them.")
	for rcode := range rcodes {
		for p := range plugins {
			if n := s.responses[0][rcode][p].Load() + s.responses[1][rcode][p].Load(); n > 0 {
				b.line("coredns_dns_responses_total", server+`,rcode="`+rcodeName(rcode)+`",plugin="`+pluginNames[p]+`"`, n)
			}
		}
	}
	b.head("coredns_dns_response_size_bytes", "histogram", "Size of the answers.")
	for p, proto := range protos {
		b.sizes("coredns_dns_response_size_bytes", server+`,proto="`+proto+`"`, &s.sizesOut[p])
	}
}

func (s *Set) writeForwarding(b *writer, f Forwarding) {
	for _, m := range []struct {
		name, kind, help string
		value            uint64
	}{
		{"coredns_cache_entries", "gauge", "Answers from outside that are kept.", f.Entries},
		{"coredns_cache_hits_total", "counter", "Questions that the cache answered.", f.Hits},
		{"coredns_cache_misses_total", "counter", "Questions that it did not.", f.Misses},
		{"coredns_cache_requests_total", "counter", "Questions that the cache was asked.", f.Hits + f.Misses},
		{"coredns_cache_prefetch_total", "counter", "Answers asked for before their time was over.", f.Prefetched},
		{"coredns_cache_served_stale_total", "counter", "Answers given after their time was over.", f.Stale},
		{"coredns_cache_evictions_total", "counter", "Answers that made room for others.", f.Evicted},
		{"coredns_forward_max_concurrent_rejects_total", "counter", "Questions refused because too many waited.", f.Refused},
	} {
		b.head(m.name, m.kind, m.help)
		b.line(m.name, server, m.value)
	}
	b.head("coredns_proxy_requests_total", "counter", "Questions sent to an upstream.")
	for _, u := range f.Upstreams {
		b.line("coredns_proxy_requests_total", `proxy_name="forward",to=`+strconv.Quote(u.To), u.Asked)
	}
	b.head("coredns_proxy_healthcheck_failures_total", "counter", "Questions that an upstream did not answer.")
	for _, u := range f.Upstreams {
		b.line("coredns_proxy_healthcheck_failures_total", `proxy_name="forward",to=`+strconv.Quote(u.To), u.Failed)
	}
}

// writer writes lines; the first error is Flush's.
type writer struct{ *bufio.Writer }

func (w *writer) head(name, kind, help string) {
	_, _ = fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (w *writer) line(name, labels string, value uint64) {
	_, _ = fmt.Fprintf(w, "%s{%s} %d\n", name, labels, value)
}

func (w *writer) sizes(name, labels string, h *sizes) {
	var total uint64
	for i := range sizeBounds {
		total += h.counts[i].Load()
		w.line(name+"_bucket", labels+`,le="`+strconv.Itoa(sizeBounds[i])+`"`, total)
	}
	total += h.counts[sizeBuckets].Load()
	w.line(name+"_bucket", labels+`,le="+Inf"`, total)
	w.line(name+"_sum", labels, h.sum.Load())
	w.line(name+"_count", labels, total)
}

func (w *writer) durations(name, labels string, h *durations) {
	var total uint64
	bound := firstBucket
	for i := range timeBuckets {
		total += h.counts[i].Load()
		w.line(name+"_bucket", labels+`,le="`+strconv.FormatFloat(bound.Seconds(), 'g', -1, 64)+`"`, total)
		bound *= 2
	}
	total += h.counts[timeBuckets].Load()
	w.line(name+"_bucket", labels+`,le="+Inf"`, total)
	_, _ = fmt.Fprintf(w, "%s_sum{%s} %g\n", name, labels, time.Duration(h.sum.Load()).Seconds())
	w.line(name+"_count", labels, total)
}

// rcodeName writes a response code as miekg/dns does.
func rcodeName(rcode int) string {
	names := strings.Fields("NOERROR FORMERR SERVFAIL NXDOMAIN NOTIMP REFUSED YXDOMAIN YXRRSET NXRRSET NOTAUTH NOTZONE")
	if rcode < len(names) {
		return names[rcode]
	}
	return strconv.Itoa(rcode)
}

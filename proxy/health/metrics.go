package health

import (
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// metrics are counted under the names that kube-proxy has for them, so that
// dashboards and ClusterLoader2 find them (docs/proxy.md §Metrics). Where it counts
// each family apart, both bear what is one work here.
type metrics struct {
	sync, programming                 histogram
	full, partial                     histogram
	serviceChanges, endpointChanges   atomic.Uint64
	servicesPending, endpointsPending atomic.Uint64
	lastQueued, lastSync              atomic.Int64 // Unix nanoseconds
	healthz, livez                    codes
	began                             time.Time
}

func newMetrics() *metrics {
	var syncs, programming []float64
	for i := range 15 {
		syncs = append(syncs, 0.001*float64(int(1)<<i))
	}
	programming = append(programming, 0.25, 0.5)
	for _, r := range [][3]int{{1, 59, 1}, {60, 115, 5}, {120, 300, 30}} {
		for s := r[0]; s <= r[1]; s += r[2] {
			programming = append(programming, float64(s))
		}
	}
	return &metrics{
		sync: newHistogram(syncs), full: newHistogram(syncs), partial: newHistogram(syncs), programming: newHistogram(programming),
		began: time.Now(),
	}
}

func (m *metrics) queued(now time.Time) { m.lastQueued.Store(now.UnixNano()) }

// changed notes objects that have changed and are not in force yet.
func (m *metrics) changed(services, endpoints int) {
	m.serviceChanges.Add(uint64(max(services, 0)))
	m.endpointChanges.Add(uint64(max(endpoints, 0)))
	m.servicesPending.Store(uint64(max(services, 0)))
	m.endpointsPending.Store(uint64(max(endpoints, 0)))
}

// synced notes that a turn has brought everything up to date; whole: all services
// were compiled, not the changed ones alone.
func (m *metrics) synced(took time.Duration, now time.Time, whole bool) {
	m.sync.observe(took)
	if whole {
		m.full.observe(took)
	} else {
		m.partial.observe(took)
	}
	m.lastSync.Store(now.UnixNano())
	m.servicesPending.Store(0)
	m.endpointsPending.Store(0)
}

// programmed notes that a slice is in force that was triggered at a moment
// (SYNC-2). What was before this process is not its doing.
func (m *metrics) programmed(triggered, now time.Time) {
	if triggered.IsZero() || triggered.Before(m.began) {
		return
	}
	m.programming.observe(now.Sub(triggered))
}

// write writes all of them in Prometheus' text format.
func (m *metrics) write(w io.Writer, noInternal, noExternal int) {
	p := printer{w: w}
	for _, h := range []struct {
		name, help string
		h          *histogram
	}{
		{"kubeproxy_sync_proxy_rules_duration_seconds", "Time from a change's turn to its tables in force", &m.sync},
		{"kubeproxy_sync_full_proxy_rules_duration_seconds", "The same of turns that compile all services", &m.full},
		{"kubeproxy_sync_partial_proxy_rules_duration_seconds", "The same of turns that compile what has changed", &m.partial},
		{"kubeproxy_network_programming_duration_seconds", "Time from the change of an endpoint to its table in force", &m.programming},
	} {
		p.head(h.name, "histogram", h.help)
		for _, f := range []string{IPv4, IPv6} {
			p.histogram(h.name, `ip_family="`+f+`"`, h.h)
		}
	}
	perFamily := func(name, kind, help string, v float64, more ...string) {
		p.head(name, kind, help)
		for _, f := range []string{IPv4, IPv6} {
			p.value(name, append([]string{`ip_family="` + f + `"`}, more...), v)
		}
	}
	perFamily("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", "When tables were last put in force", seconds(m.lastSync.Load()))
	perFamily("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge", "When a change was last heard of", seconds(m.lastQueued.Load()))
	const noLocal = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
	p.head(noLocal, "gauge", "Service ports of policy Local whose endpoints are all elsewhere")
	for _, f := range []string{IPv4, IPv6} {
		p.value(noLocal, []string{`ip_family="` + f + `"`, `traffic_policy="internal"`}, float64(noInternal))
		p.value(noLocal, []string{`ip_family="` + f + `"`, `traffic_policy="external"`}, float64(noExternal))
	}
	for _, g := range []struct {
		name, kind, help string
		v                uint64
	}{
		{"kubeproxy_sync_proxy_rules_service_changes_total", "counter", "Services that have changed", m.serviceChanges.Load()},
		{"kubeproxy_sync_proxy_rules_service_changes_pending", "gauge", "Of them, those that are not in force yet", m.servicesPending.Load()},
		{"kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter", "EndpointSlices that have changed", m.endpointChanges.Load()},
		{"kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge", "Of them, those that are not in force yet", m.endpointsPending.Load()},
	} {
		p.head(g.name, g.kind, g.help)
		p.value(g.name, nil, float64(g.v))
	}
	for _, c := range []struct {
		name string
		c    *codes
	}{{"kubeproxy_proxy_healthz_total", &m.healthz}, {"kubeproxy_proxy_livez_total", &m.livez}} {
		p.head(c.name, "counter", "Answers by HTTP status")
		for _, code := range []int{http.StatusOK, http.StatusServiceUnavailable} {
			p.value(c.name, []string{`code="` + strconv.Itoa(code) + `"`}, float64(c.c.get(code)))
		}
	}
}

func seconds(unixNano int64) float64 { return float64(unixNano) / 1e9 }

// codes counts HTTP answers by status.
type codes struct {
	mu sync.Mutex
	n  map[int]uint64 // guarded by mu
}

func (c *codes) add(code int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[int]uint64)
	}
	c.n[code]++
}

func (c *codes) get(code int) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[code]
}

// histogram counts durations by buckets.
type histogram struct {
	bounds []float64 // seconds, sorted

	mu     sync.Mutex
	counts []uint64 // guarded by mu; one more than bounds
	sum    float64  // guarded by mu
}

func newHistogram(bounds []float64) histogram {
	return histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (h *histogram) observe(d time.Duration) {
	s := d.Seconds()
	i, _ := slices.BinarySearch(h.bounds, s) // the first bound that is not below
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[i]++
	h.sum += s
}

// printer writes Prometheus' text format. An error of the writer is the client's.
type printer struct{ w io.Writer }

func (p printer) head(name, kind, help string) {
	_, _ = fmt.Fprintf(p.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (p printer) value(name string, labels []string, v float64) {
	text := ""
	if len(labels) > 0 {
		text = "{" + strings.Join(labels, ",") + "}"
	}
	_, _ = fmt.Fprintf(p.w, "%s%s %s\n", name, text, number(v))
}

func (p printer) histogram(name, label string, h *histogram) {
	h.mu.Lock()
	counts, sum := slices.Clone(h.counts), h.sum
	h.mu.Unlock()
	total := uint64(0)
	for i, n := range counts {
		total += n
		le := math.Inf(1)
		if i < len(h.bounds) {
			le = h.bounds[i]
		}
		p.value(name+"_bucket", []string{label, `le="` + number(le) + `"`}, float64(total))
	}
	p.value(name+"_sum", []string{label}, sum)
	p.value(name+"_count", []string{label}, float64(total))
}

func number(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// WriteCounters writes counters of one name, told apart by one label, for More.
func WriteCounters(w io.Writer, name, help, label string, values map[string]uint64) {
	p := printer{w: w}
	p.head(name, "counter", help)
	for _, k := range slices.Sorted(maps.Keys(values)) {
		p.value(name, []string{label + "=" + strconv.Quote(k)}, float64(values[k]))
	}
}

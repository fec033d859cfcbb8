package results

import "fmt"

// Mark is what a figure has to reach.
type Mark struct {
	Name  string // of the figure
	What  string // for people
	Least bool   // it is to be at least Limit, else at most
	Limit float64
	Unit  string // of Limit, "" for a ratio
	// Within has the mark be met when it lies inside the interval of the median.
	Within bool
}

// marks lists all of them, in the order of the table.
func marks() []Mark {
	return []Mark{
		{Name: "same-node-tcp", What: "same node, one TCP stream, against veth and kernel routing", Least: true, Limit: 0.8},
		{Name: "same-node-tcp-carriers", What: "the agent's processor time for it", Limit: 0.6, Unit: "ns/byte"},
		{Name: "same-node-ask-p50", What: "same node, request and reply", Limit: 1.6},
		{Name: "same-node-udp-64-per-core", What: "small packets that a forwarding processor carries", Least: true, Limit: 0.25, Unit: "Mpps"},
		{Name: "walk-known-flow-ns", What: "the walk of a packet, hot", Limit: 150, Unit: "ns"},
		{Name: "walk-million-flows-ns", What: "the walk among a million flows in random order", Limit: 400, Unit: "ns"},
		{Name: "encrypted-vs-wireguard-go", What: "encrypted, one TCP stream, against wireguard-go with veth", Least: true, Limit: 1.5},
		{Name: "encrypted-vs-wireguard-go-carriers", What: "processor time a byte, agents against wireguard-go's processes", Limit: 0.7},
		{Name: "encrypted-vs-wireguard-go-cpu", What: "processor time a byte, everything that takes part", Limit: 0.7},
		{Name: "encrypted-vs-vxlan", What: "encrypted, one TCP stream, against unencrypted VXLAN", Least: true, Limit: 0.4},
		{Name: "encrypted-vs-wireguard-go-under-load-p99", What: "encrypted requests beside a bulk stream", Limit: 3, Unit: "ms"},
		{Name: "vip-vs-direct", What: "one TCP stream through a Service, against the pod's own address", Least: true, Limit: 0.98, Within: true},
		{Name: "vip-vs-direct-carriers", What: "the agent's processor time for it", Limit: 1, Within: true},
		{Name: "egress-vs-slirp4netns", What: "to the outside, one TCP stream, against slirp4netns", Least: true, Limit: 3},
		{Name: "egress-vs-pasta", What: "the same against pasta", Least: true, Limit: 1},
		{Name: "agent-rss-110-pods", What: "the agent's memory under full load with 110 pods", Limit: 64, Unit: "MB"},
		{Name: "agent-gc-pause-p99", What: "pauses of the agent's garbage collector meanwhile", Limit: 1, Unit: "ms"},
		{Name: "growth-pods-250-udp-64-carriers", What: "a packet's cost with 250 pods on the node, against 2", Limit: 1.2},
		{Name: "growth-services-10000-udp-64-carriers", What: "a packet's cost with 10 000 Services, against 1", Limit: 1.2},
		{Name: "agent-fairness-tcp-p99", What: "a pod's requests beside another pod's 8 streams, against alone", Limit: 2},
		{Name: "agent-fairness-udp-p99", What: "the same beside another pod's small packets", Limit: 2},
	}
}

// MarkOf returns the mark of a figure.
func MarkOf(name string) (Mark, bool) {
	for _, m := range marks() {
		if m.Name == name {
			return m, true
		}
	}
	return Mark{}, false
}

func (m Mark) String() string {
	sign := "<="
	if m.Least {
		sign = ">="
	}
	if m.Unit == "" {
		return fmt.Sprintf("%s %g", sign, m.Limit)
	}
	return fmt.Sprintf("%s %g %s", sign, m.Limit, m.Unit)
}

// Judge says whether a result has reached its mark. A mark with a unit is about our
// side of a ratio.
func (m Mark) Judge(r Result) string {
	v := r.Value
	if m.Unit != "" && r.Ratio {
		v = r.Ours
	}
	if m.Within && m.Least {
		v = r.High
	} else if m.Within {
		v = r.Low
	}
	if m.Least && v >= m.Limit || !m.Least && v <= m.Limit {
		return "met"
	}
	return "missed"
}

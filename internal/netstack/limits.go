package netstack

import "github.com/netctl/netctl/internal/quota"

// Limits bounds what may exist at once, in total and per source address. A
// zero field means its default. The last quarter of each total is kept for
// addresses that have little, so that greedy pods leave room for the next one.
type Limits struct {
	Dials, DialsPerPod   int // connections being opened; default 4096, 256
	Conns, ConnsPerPod   int // connections, open and being opened; default 32768, 4096
	Flows, FlowsPerPod   int // UDP flows; default 16384 (below the kernel's 28232 local ports), 2048
	Echoes, EchoesPerPod int // pings; default 1024, 64

	// Connections and UDP flows from the outside, which take nothing from pods.
	// The addresses are clients'; one may be a whole network behind a NAT.
	Inbound, InboundPerClient           int // connections; default 32768, 16384
	InboundFlows, InboundFlowsPerClient int // UDP flows; default 32768, 16384
}

const (
	// otherFiles is how many descriptors are left to the rest of the process:
	// questions to upstream name servers (1000), a device for each pod, and
	// what comes and goes. Where that is more than half of all, half is left.
	otherFiles = 2048
	// leastPerPod is what fit leaves to a pod, however few there are.
	leastPerPod = 4
)

func (l *Limits) setDefaults() {
	for _, d := range []struct {
		field *int
		value int
	}{
		{&l.Dials, 4096},
		{&l.DialsPerPod, 256},
		{&l.Conns, 32768},
		{&l.ConnsPerPod, 4096},
		{&l.Flows, 16384},
		{&l.FlowsPerPod, 2048},
		{&l.Echoes, 1024},
		{&l.EchoesPerPod, 64},
		{&l.Inbound, 32768},
		{&l.InboundPerClient, 16384},
		{&l.InboundFlows, 32768},
		{&l.InboundFlowsPerClient, 16384},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
}

// fit makes the totals small enough for a process that may have files open,
// all by the same factor, and reports whether it had to. A connection that is
// being opened is in Conns already. What comes from the outside has no
// descriptor here: whoever accepted it bounds it.
func (l *Limits) fit(files int) (smaller bool) {
	room := files - min(otherFiles, files/2)
	need := l.Conns + l.Flows + l.Echoes
	if need <= room {
		return false
	}
	scale := func(n int) int { return int(int64(n) * int64(room) / int64(need)) }
	for _, total := range []*int{&l.Dials, &l.Conns, &l.Flows, &l.Echoes} {
		*total = scale(*total)
	}
	for _, perPod := range []*int{&l.DialsPerPod, &l.ConnsPerPod, &l.FlowsPerPod, &l.EchoesPerPod} {
		*perPod = min(*perPod, max(leastPerPod, scale(*perPod)))
	}
	return true
}

// share keeps enough for 256 addresses of whatever size the whole is.
func share(whole, perPod int) *quota.Quota { return quota.New(whole, perPod, whole/1024) }

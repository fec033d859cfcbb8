package main

import (
	"context"
	"errors"

	"github.com/netctl/netctl/test/bench/ends"
	"github.com/netctl/netctl/test/bench/rivals"
)

// fairnessNames compare a pod's requests beside another pod at full blast (ours) with
// the same requests alone (theirs): through an agent, and through the kernel for
// reference, where the blast costs the machine's processors as well.
func fairnessNames() []string {
	return []string{"agent-fairness-tcp", "agent-fairness-udp", "veth-fairness-tcp", "veth-fairness-udp"}
}

// fourPods are the two pods and another two.
const fourPods = `---
apiVersion: v1
kind: Pod
metadata: {name: blaster}
spec:
  nodeName: node1
  containers: [{name: idle, command: [sleep, "86400"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: sink}
spec:
  nodeName: node1
  containers: [{name: idle, command: [sleep, "86400"]}]
`

func (b *bench) fairness(ctx context.Context) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	if b.any(fairnessNames()[:2]...) {
		l, err := b.pods(ctx, &c, b.netctl, podsOf{name: "fairness", nodes: 1, manifest: fourPods})
		if err != nil {
			return err
		}
		alone, err := b.between(l)
		if err != nil {
			return err
		}
		p, err := l.between("blaster", "sink")
		if err != nil {
			return err
		}
		if err := b.blast(ctx, fairnessNames()[:2], alone, p); err != nil {
			return err
		}
	}
	if b.against != "" || !b.any(fairnessNames()[2:]...) {
		return nil
	}
	paths, err := rivals.Veths(2)
	if err != nil {
		return err
	}
	c.add(paths[0].Close)
	alone, err := b.open(paths[0])
	if err != nil {
		return err
	}
	return b.blast(ctx, fairnessNames()[2:], alone, paths[1])
}

// blast compares a way beside a blast over another path with itself alone.
func (b *bench) blast(ctx context.Context, names []string, alone *way, p *rivals.Path) error {
	other, err := b.open(p)
	if err != nil {
		return err
	}
	for i, r := range []ends.Request{
		{Kind: ends.Stream, To: other.at(ends.SinkPort), Number: 8},
		{Kind: ends.Flood, To: other.at(ends.SinkPort), Size: 64},
	} {
		blasted := *alone
		blasted.load = &load{other, r}
		if err := b.contest(ctx, names[i], beside, &blasted, alone); err != nil {
			return err
		}
	}
	return nil
}

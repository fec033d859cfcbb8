package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/overlay"
)

// captureTail is how long each wire is watched after the last packet was sent on
// purpose; what was sent before waits to be read.
const captureTail = 100 * time.Millisecond

// capture sends a secret between pods on different nodes and shows that the
// wire between the nodes carried WireGuard and nothing else of them.
func (d *demo) capture(ctx context.Context) {
	if d.lab.cfg.Nodes == 1 {
		d.say("skip  capture on the underlay: one node has nobody to talk to")
		return
	}
	seen, err := d.watchUnderlay(ctx)
	d.check("capture on the underlay", seen, err)
}

func (d *demo) watchUnderlay(ctx context.Context) (seen string, err error) {
	fabric, err := d.lab.namespace(fabricNS)
	if err != nil {
		return "", err
	}
	defer fabric.Close()
	var wires []*kernel.Capture
	defer func() {
		for _, w := range wires {
			err = errors.Join(err, w.Close())
		}
	}()
	for i := range d.lab.cfg.Nodes {
		w, err := kernel.OpenCapture(fabric, wireName(i))
		if err != nil {
			return "", err
		}
		wires = append(wires, w)
	}
	pairs, err := d.tellSecrets()
	if err != nil {
		return "", err
	}
	var tally wireTally
	for _, w := range wires {
		if err := tally.read(ctx, w); err != nil {
			return "", err
		}
	}
	seen, err = tally.verdict()
	return fmt.Sprintf("%d pairs of pods spoke, the wires carried %s", pairs, seen), err
}

// read counts what came in by one wire, until nothing more does.
func (t *wireTally) read(ctx context.Context, w *kernel.Capture) error {
	if err := w.SetDeadline(time.Now().Add(captureTail)); err != nil {
		return fmt.Errorf("watch the underlay: %w", err)
	}
	buf := make([]byte, maxDatagram+etherHeader)
	for ctx.Err() == nil {
		f, err := w.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch the underlay: %w", err)
		}
		if !f.Outgoing { // what goes out here has come in elsewhere
			t.count(f.Data)
		}
	}
	return context.Cause(ctx)
}

// tellSecrets has a pod of every node say something to one of every other node,
// and returns how many pairs that were.
func (d *demo) tellSecrets() (pairs int, err error) {
	for _, from := range d.replicas() {
		for _, to := range d.replicas() {
			if from.Node == to.Node {
				continue
			}
			pairs++
			for _, a := range to.Addresses {
				if _, err := d.fetch(from.Name.Name, "http://"+hostPort(a, "80")+"/a-secret-that-nobody-on-the-wire-may-read"); err != nil {
					return 0, err
				}
			}
		}
	}
	return pairs, nil
}

// wireTally counts the frames of a wire by what they are.
type wireTally struct {
	wireGuard, bytes, neighbours int
	secret                       bool
	others                       []string
}

const (
	etherHeader   = 14
	etherIPv4     = 0x0800
	etherARP      = 0x0806
	etherIPv6     = 0x86dd
	protoHopByHop = 0
	protoIGMP     = 2
	protoUDP      = 17
	protoICMPv6   = 58
	wireGuardPort = overlay.DefaultPort
)

// count takes one Ethernet frame.
func (t *wireTally) count(frame []byte) {
	if strings.Contains(string(frame), "a-secret-that-nobody") {
		t.secret = true
	}
	if len(frame) < etherHeader {
		return
	}
	kind := binary.BigEndian.Uint16(frame[12:])
	ip := frame[etherHeader:]
	proto, payload := byte(0), []byte(nil)
	switch {
	case kind == etherARP:
		t.neighbours++
		return
	case kind == etherIPv4 && len(ip) >= 20:
		proto, payload = ip[9], ip[min(int(ip[0]&15)*4, len(ip)):]
	case kind == etherIPv6 && len(ip) >= 40:
		proto, payload = ip[6], ip[40:]
	}
	switch {
	case proto == protoUDP && len(payload) >= 12 && wireGuardMessage(payload):
		t.wireGuard++
		t.bytes += len(frame)
	case kind == etherIPv4 && proto == protoIGMP && [3]byte(ip[16:19]) == [3]byte{224, 0, 0},
		kind == etherIPv6 && linkMessage(proto, payload):
		t.neighbours++ // the links' own housekeeping
	default:
		t.others = append(t.others, fmt.Sprintf("ethertype %#04x protocol %d, %d bytes", kind, proto, len(frame)))
	}
}

// linkMessage reports whether the payload of an IPv6 packet is neighbour
// discovery (RFC 4861) or multicast listener discovery, which comes behind a
// hop-by-hop header (RFC 3810): nothing else of ICMPv6, for that is of pods.
func linkMessage(proto byte, payload []byte) bool {
	if proto == protoHopByHop && len(payload) >= 8 && payload[0] == protoICMPv6 {
		proto, payload = protoICMPv6, payload[min(8+int(payload[1])*8, len(payload)):]
	}
	if proto != protoICMPv6 || len(payload) == 0 {
		return false
	}
	kind := payload[0]
	return kind >= 130 && kind <= 137 || kind == 143
}

// wireGuardMessage reports whether a UDP datagram is one of WireGuard's four
// messages, between the nodes' ports.
func wireGuardMessage(udp []byte) bool {
	if binary.BigEndian.Uint16(udp) != wireGuardPort || binary.BigEndian.Uint16(udp[2:]) != wireGuardPort {
		return false
	}
	return udp[8] >= 1 && udp[8] <= 4 && udp[9] == 0 && udp[10] == 0 && udp[11] == 0
}

func (t *wireTally) verdict() (string, error) {
	switch {
	case t.secret:
		return "", errors.New("the wire carried what a pod said, readable")
	case len(t.others) > 0:
		return "", fmt.Errorf("the wire carried something else than WireGuard: %s", strings.Join(t.others, "; "))
	case t.wireGuard == 0:
		return "", errors.New("the wire carried nothing at all")
	}
	return fmt.Sprintf("%d WireGuard messages (%d bytes), %d of address resolution, nothing else", t.wireGuard, t.bytes, t.neighbours), nil
}

package datapath

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/packet"
)

// queueReader is a TUN with packets in it.
type queueReader struct {
	queue [][]byte
	reads int
}

func (q *queueReader) Write([]byte) error { return nil }
func (q *queueReader) FD() int            { return -1 }

func (q *queueReader) Read(buf []byte) (int, error) {
	q.reads++
	if len(q.queue) == 0 {
		return 0, kernel.ErrAgain
	}
	n := copy(buf, q.queue[0])
	q.queue = q.queue[1:]
	return n, nil
}

// numbered is a packet of a flow, numbered in it, of a size.
func numbered(flow uint16, number uint32, size int, v6 bool) []byte {
	buf := make([]byte, packet.VNetLen+max(size, 64))
	ip, l4 := buf[packet.VNetLen:], 20
	ip[0], ip[9] = 0x45, packet.ProtoTCP
	if v6 {
		ip[0], ip[6], l4 = 0x60, packet.ProtoUDP, 40
	}
	binary.BigEndian.PutUint16(ip[l4:], flow)
	binary.BigEndian.PutUint32(ip[l4+4:], number)
	return buf
}

func readNumbered(buf []byte) (flow uint16, number uint32) {
	ip, l4 := buf[packet.VNetLen:], 20
	if ip[0]>>4 == 6 {
		l4 = 40
	}
	return binary.BigEndian.Uint16(ip[l4:]), binary.BigEndian.Uint32(ip[l4+4:])
}

func aheadWorker() *worker { return &worker{buf: make([]byte, packet.MaxSize)} }

func TestSmallDoesNotWaitBehindLarge(t *testing.T) {
	t.Parallel()
	const bulk, ask, large = 1, 2, 60000
	w, q := aheadWorker(), &queueReader{}
	for i := range 10 {
		q.queue = append(q.queue, numbered(bulk, uint32(i), large, false))
	}
	take := func(flow uint16, number uint32) {
		t.Helper()
		buf, err := w.next(1, q, false)
		if err != nil {
			t.Fatal(err)
		}
		if f, n := readNumbered(buf); f != flow || n != number {
			t.Errorf("packet %d of flow %d is carried, want %d of %d", n, f, number, flow)
		}
	}
	take(bulk, 0)
	if q.reads != 1 {
		t.Errorf("%d reads for a packet of the only flow", q.reads)
	}
	q.queue = append(q.queue, numbered(ask, 0, 100, false))
	for i := range 9 { // the first one has to wait
		take(bulk, uint32(i)+1)
	}
	take(ask, 0)
	for i := range 10 {
		q.queue = append(q.queue, numbered(bulk, uint32(10+i), large, false))
	}
	q.queue = append(q.queue, numbered(ask, 1, 100, false), numbered(bulk, 20, 100, false))
	take(ask, 1)
	take(bulk, 10)
	q.queue = append(q.queue, numbered(ask, 2, 100, true))
	take(ask, 2)
	for i := range 10 {
		take(bulk, uint32(i)+11) // and its small end in its turn
	}
	if _, err := w.next(1, q, false); !errors.Is(err, kernel.ErrAgain) {
		t.Errorf("got %v of an empty port", err)
	}
	// When nothing small comes any more, nothing is read ahead any more.
	for i := range mixedFor {
		q.queue = append(q.queue, numbered(bulk, uint32(i), large, false))
	}
	for range mixedFor {
		if _, err := w.next(1, q, false); err != nil {
			t.Fatal(err)
		}
	}
	q.reads, q.queue = 0, [][]byte{numbered(bulk, 0, large, false), numbered(bulk, 1, large, false)}
	take(bulk, 0)
	if q.reads != 1 {
		t.Errorf("%d reads for a packet of what is the only flow again", q.reads)
	}
	for range keepFor {
		_, _ = w.next(1, q, false)
	}
	if n := len(w.ahead.free); n > 0 {
		t.Errorf("%d buffers are kept for nothing", n)
	}
}

// TestOrderWithinFlows mixes any packets of two ports: each is carried once, those
// of a flow in order, and what waits is bounded.
func TestOrderWithinFlows(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	w := aheadWorker()
	ports := map[PortID]*queueReader{1: {}, 2: {}}
	var sent, got [3][100]uint32
	take := func(id PortID) bool {
		buf, err := w.next(id, ports[id], false)
		if err != nil {
			return false
		}
		flow, n := readNumbered(buf)
		if n != got[id][flow] {
			t.Fatalf("port %d: packet %d of flow %d is carried after %d", id, n, flow, got[id][flow])
		}
		got[id][flow]++
		if w.ahead.busy > maxAhead {
			t.Fatalf("%d packets wait", w.ahead.busy)
		}
		return true
	}
	for range 20000 {
		id := PortID(1 + rng.IntN(2))
		if rng.IntN(3) > 0 {
			take(id)
			continue
		}
		flow := uint16(rng.IntN(100))
		size := []int{64, 1400, largePacket, 60000}[rng.IntN(4)]
		ports[id].queue = append(ports[id].queue, numbered(flow, sent[id][flow], size, flow%2 == 0))
		sent[id][flow]++
	}
	w.ahead.ending = true // only what was read already
	left := len(ports[1].queue) + len(ports[2].queue)
	for w.ahead.busy > 0 {
		for id := range w.ahead.waits {
			take(id)
		}
	}
	if n := len(ports[1].queue) + len(ports[2].queue); n != left {
		t.Errorf("%d packets were read though the worker ends", left-n)
	}
	w.ahead.ending = false
	for take(1) || take(2) {
	}
	if sent != got {
		t.Error("not everything was carried")
	}
}

// TestPortOfAnotherPod: what waits of a pod that is gone is not carried as the next
// one's.
func TestPortOfAnotherPod(t *testing.T) {
	t.Parallel()
	w, q := aheadWorker(), &queueReader{}
	q.queue = append(q.queue, numbered(1, 0, 60000, false), numbered(2, 0, 64, false), numbered(1, 1, 60000, false), numbered(1, 2, 60000, false), numbered(1, 3, 60000, false))
	for range 3 {
		if _, err := w.next(1, q, false); err != nil {
			t.Fatal(err)
		}
	}
	if w.ahead.busy == 0 {
		t.Fatal("nothing waits")
	}
	if _, err := w.next(1, &queueReader{}, false); !errors.Is(err, kernel.ErrAgain) {
		t.Errorf("got %v of another pod's empty port", err)
	}
	if w.ahead.busy != 0 {
		t.Errorf("%d packets of nobody wait", w.ahead.busy)
	}
}

// TestFragmentsAreOneFlow: pieces of a datagram have no ports but the first.
func TestFragmentsAreOneFlow(t *testing.T) {
	t.Parallel()
	first, later, whole := numbered(5, 0, 1400, false), numbered(9, 0, 1400, false), numbered(5, 0, 1400, false)
	first[packet.VNetLen+6], later[packet.VNetLen+7] = 0x20, 100
	if flowNumber(first) != flowNumber(later) {
		t.Error("a datagram's fragments are two flows")
	}
	if flowNumber(whole) == flowNumber(numbered(6, 0, 1400, false)) && flowNumber(whole) == flowNumber(numbered(7, 0, 1400, false)) {
		t.Error("ports do not count")
	}
	for n := range 60 { // of any length
		flowNumber(whole[:n])
		flowNumber(numbered(1, 0, 64, true)[:n])
	}
}

func TestReadingAheadDoesNotAllocate(t *testing.T) { //nolint:paralleltest // counts allocations of the process
	w := aheadWorker()
	large, small := numbered(1, 0, 60000, false), numbered(2, 0, 64, false)
	packets := [][]byte{small, large, large, large, small, large}
	q := &queueReader{}
	round := func() {
		q.queue = packets
		for range packets {
			if _, err := w.next(1, q, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	round()
	if got := testing.AllocsPerRun(100, round); got != 0 {
		t.Errorf("%v allocations for %d packets", got, len(packets))
	}
}

// What a limited port sends waits in its device: nothing is read of it that is not
// carried, but for what was read before it had a limit.
func TestLimitedPortIsNotReadAhead(t *testing.T) {
	t.Parallel()
	const bulk, ask, large = 1, 2, 60000
	w, q := aheadWorker(), &queueReader{}
	take := func(limited bool, flow uint16, number uint32) {
		t.Helper()
		buf, err := w.next(1, q, limited)
		if err != nil {
			t.Fatal(err)
		}
		if f, n := readNumbered(buf); f != flow || n != number {
			t.Errorf("packet %d of flow %d is carried, want %d of %d", n, f, number, flow)
		}
	}
	q.queue = append(q.queue, numbered(ask, 0, 100, false), numbered(bulk, 0, large, false), numbered(bulk, 1, large, false), numbered(ask, 1, 100, false))
	take(false, ask, 0)
	take(false, ask, 1)
	if !w.ahead.has(1) {
		t.Fatal("nothing was read ahead without a limit")
	}
	q.reads = 0
	q.queue = append(q.queue, numbered(bulk, 2, large, false), numbered(ask, 2, 100, false))
	take(true, bulk, 0)
	take(true, bulk, 1)
	if q.reads != 0 || w.ahead.has(1) {
		t.Errorf("%d reads while something waited, more waits: %v", q.reads, w.ahead.has(1))
	}
	take(true, bulk, 2)
	take(true, ask, 2)
	if q.reads != 2 || w.ahead.has(1) {
		t.Errorf("%d reads for two packets, more waits: %v", q.reads, w.ahead.has(1))
	}
}

// Small packets without end pass a large one, but not all of them.
func TestLargeDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	const bulk, ask, large = 1, 2, 60000
	w, q := aheadWorker(), &queueReader{}
	q.queue = append(q.queue, numbered(ask, 0, 100, false), numbered(bulk, 0, large, false), numbered(bulk, 1, large, false))
	for i := range 10 * maxPassed {
		q.queue = append(q.queue, numbered(ask, uint32(i)+1, 100, false))
	}
	var carried []uint32 // of the bulk flow: after how many packets
	for i := range uint32(5 * maxPassed) {
		buf, err := w.next(1, q, false)
		if err != nil {
			t.Fatal(err)
		}
		if f, _ := readNumbered(buf); f == bulk {
			carried = append(carried, i)
		}
	}
	if want := []uint32{1 + maxPassed, 2 + 2*maxPassed}; !slices.Equal(carried, want) {
		t.Errorf("large packets are carried after %v others, want %v", carried, want)
	}
}

// A port has one turn in a round, whether something waits of it or not.
func TestOneTurnInARound(t *testing.T) {
	t.Parallel()
	w, q := aheadWorker(), &queueReader{}
	for i := range 4 {
		q.queue = append(q.queue, numbered(2, uint32(i), 100, false), numbered(1, uint32(i), 60000, false))
	}
	for range 5 {
		if _, err := w.next(1, q, false); err != nil {
			t.Fatal(err)
		}
	}
	if !w.ahead.has(1) {
		t.Fatal("nothing waits")
	}
	turns := func() (n int) {
		for range w.ahead.waits {
			n++
		}
		return n
	}
	if n := turns(); n != 0 {
		t.Errorf("%d more turns in the same round", n)
	}
	w.ahead.round++
	if n := turns(); n != 1 {
		t.Errorf("%d turns in the next round, want one", n)
	}
}

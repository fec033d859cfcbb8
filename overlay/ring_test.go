package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
)

// TestRingAgainstSlice compares the ring with the plainest queue there is.
func TestRingAgainstSlice(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 3))
	const size, packets = 1000, 16
	r := newRing(size, packets)
	var want [][]byte
	used, refused := 0, 0
	for i := range 20000 {
		if rng.IntN(2) == 0 {
			buf := bytes.Repeat([]byte{byte(i)}, 1+rng.IntN(300))
			switch err := r.put(buf, &window{}); {
			case err == nil:
				want = append(want, buf)
				used += len(buf)
			case !errors.Is(err, ErrFull):
				t.Fatal(err)
			case len(want) < packets && used+300 < size-300: // at most one gap, less than a packet
				t.Fatalf("seed %d: full with %d packets, %d bytes", seed, len(want), used)
			default:
				refused++
			}
			continue
		}
		got, to := r.peek()
		if len(want) == 0 {
			if got != nil {
				t.Fatalf("seed %d: %d bytes out of an empty ring", seed, len(got))
			}
			continue
		}
		if !bytes.Equal(got, want[0]) || to == nil {
			t.Fatalf("seed %d: got %x, want %x", seed, got, want[0])
		}
		r.pop()
		used -= len(want[0])
		want = want[1:]
	}
	if refused == 0 {
		t.Errorf("seed %d: never full", seed)
	}
}

// TestRingConcurrent has producers, each numbering its packets, and one
// consumer, which must see each producer's in order.
func TestRingConcurrent(t *testing.T) {
	t.Parallel()
	const producers, each = 4, 1000
	r := newRing(1<<16, 64)
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			buf := make([]byte, 8+p*500)
			for i := range each {
				binary.BigEndian.PutUint32(buf, uint32(p))
				binary.BigEndian.PutUint32(buf[4:], uint32(i))
				for r.put(buf, &window{}) != nil {
					runtime.Gosched()
				}
			}
		})
	}
	var next [producers]uint32
	for range producers * each {
		buf, _ := r.peek()
		for buf == nil {
			if !r.wait() {
				t.Fatal("closed")
			}
			buf, _ = r.peek()
		}
		p, i := binary.BigEndian.Uint32(buf), binary.BigEndian.Uint32(buf[4:])
		if next[p] != i || len(buf) != int(8+p*500) {
			t.Fatalf("producer %d: got %d of %d bytes, want %d", p, i, len(buf), next[p])
		}
		next[p]++
		r.pop()
	}
	wg.Wait()
	done := make(chan bool)
	go func() {
		for r.wait() { // may return early
		}
		done <- true
	}()
	r.close()
	<-done
	if err := r.put([]byte{1}, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("put into a closed ring: %v", err)
	}
}

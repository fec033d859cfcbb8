package shape_test

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/shape"
)

const mbit = 1_000_000

// sized is a packet of n IP bytes that begins with a number.
func sized(n int, number uint32) []byte {
	buf := make([]byte, packet.VNetLen+n)
	binary.BigEndian.PutUint32(buf[packet.VNetLen:], number)
	return buf
}

// near reports whether got is within a twentieth of want.
func near(got, want float64) bool { return got > 0.95*want && got < 1.05*want }

// What is sent to a port by somebody who never stops reaches it at its rate, at any
// rate and size of packets.
func TestIncomingRate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		rate uint64
		size int
		long time.Duration
	}{
		{"1 Mbit/s", mbit, 1420, 5 * time.Second},
		{"1 Mbit/s of super-packets", mbit, 65535, 30 * time.Second},
		{"10 Mbit/s", 10 * mbit, 1420, 2 * time.Second},
		{"2 Mbit/s of small packets", 2 * mbit, 64, 2 * time.Second},
		{"1 Gbit/s of super-packets", 1000 * mbit, 65535, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var got atomic.Int64
				s := shape.New(func(b []byte) error {
					got.Add(int64(len(b) - packet.VNetLen))
					return nil
				})
				s.Set(shape.Limits{In: shape.Rate{Bits: c.rate}})
				p := sized(c.size, 0)
				for began := time.Now(); time.Since(began) < c.long; time.Sleep(time.Millisecond) {
					for s.Write(p) == nil {
					}
				}
				want := float64(c.rate) / 8 * c.long.Seconds()
				if !near(float64(got.Load()), want) {
					t.Errorf("%d bytes in %s, want %.0f", got.Load(), c.long, want)
				}
				if st := s.Stats(); st.Held == 0 || st.Dropped == 0 {
					t.Errorf("%d held, %d dropped", st.Held, st.Dropped)
				}
				time.Sleep(time.Minute) // what waits is written
				if st := s.Stats(); st.Waiting != 0 {
					t.Errorf("%d bytes wait for ever", st.Waiting)
				}
			})
		})
	}
}

// What a port sends is read at its rate.
func TestOutgoingRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := shape.New(nil)
		for _, rate := range []uint64{mbit, 100 * mbit, 10 * mbit, 0} { // live
			s.Set(shape.Limits{Out: shape.Rate{Bits: rate}})
			const long = 20 * time.Second
			got := 0
			for began := time.Now(); time.Since(began) < long; {
				if wait := s.Wait(); wait > 0 {
					time.Sleep(wait.Truncate(time.Millisecond) + time.Millisecond) // as a poller's timer
					continue
				}
				if got += 60000; rate == 0 && got > 1e9 {
					return // as fast as it likes
				}
				s.Sent(packet.VNetLen + 60000)
			}
			if want := float64(rate) / 8 * long.Seconds(); !near(float64(got), want) {
				t.Errorf("%d bytes in %s, want %.0f", got, long, want)
			}
		}
	})
}

// After a pause a burst passes at once, and never more.
func TestBurst(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		burst uint64 // bits
		want  int    // packets of 1250 bytes at 10 Mbit/s: one for a millisecond
	}{
		{"what suits the rate", 0, 26},
		{"of 100 ms", mbit, 101},
		{"too little to reach the rate", 1, 6},
		{"as runtimes ask for", 1<<32 - 1, 1001},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := shape.New(func([]byte) error { return nil })
				s.Set(shape.Limits{In: shape.Rate{Bits: 10 * mbit, Burst: c.burst}})
				time.Sleep(time.Hour)
				n := 0
				for ; s.Stats().Held == 0; n++ {
					if err := s.Write(sized(1250, 0)); err != nil {
						t.Fatal(err)
					}
				}
				if n-1 != c.want {
					t.Errorf("%d packets at once, want %d", n-1, c.want)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// A queue that is full is bounded in bytes and in packets, and tells.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		rate       uint64
		size, want int // packets that wait
	}{
		{"slow port", mbit, 1024, 32},
		{"fast port", 10_000 * mbit, 65535, 9},
		{"small packets", 10_000 * mbit, 64, 512},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := shape.New(func([]byte) error { return nil })
				s.Set(shape.Limits{In: shape.Rate{Bits: c.rate, Burst: 1}})
				var err error
				for i := 0; err == nil; i++ {
					err = s.Write(sized(c.size, uint32(i)))
				}
				if st := s.Stats(); !errors.Is(err, shape.ErrFull) || st.Held != uint64(c.want) || st.Dropped != 1 {
					t.Errorf("%d packets wait, want %d; %d dropped; %v", st.Held, c.want, st.Dropped, err)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// The limit of a running port changes, what waits included, and goes.
func TestLimitIsLive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var got []uint32
		s := shape.New(func(b []byte) error {
			got = append(got, binary.BigEndian.Uint32(b[packet.VNetLen:]))
			return nil
		})
		s.Set(shape.Limits{In: shape.Rate{Bits: 1000}}) // a packet of 1250 bytes in ten seconds
		for i := range uint32(5) {
			if err := s.Write(sized(1250, i)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(got) != 1 {
			t.Fatalf("%d packets at once", len(got))
		}
		s.Set(shape.Limits{In: shape.Rate{Bits: 1e6}})
		time.Sleep(15 * time.Millisecond)
		synctest.Wait()
		if len(got) < 3 {
			t.Errorf("%d packets after the rate was raised", len(got))
		}
		s.Set(shape.Limits{})
		synctest.Wait()
		if err := s.Write(sized(1250, 5)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		for i, n := range got {
			if int(n) != i {
				t.Errorf("packet %d came as number %d", n, i)
			}
		}
		if len(got) != 6 {
			t.Errorf("%d packets came without a limit, want 6", len(got))
		}
	})
}

// Several writers at once lose nothing but what is counted, and each one's packets
// keep their order.
func TestWritersAtOnce(t *testing.T) {
	t.Parallel()
	const writers, each = 4, 3000
	var mu sync.Mutex
	last, came := [writers]uint32{}, 0
	s := shape.New(func(b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		n := binary.BigEndian.Uint32(b[packet.VNetLen:])
		if w := n >> 24; n&0xffffff <= last[w] {
			t.Errorf("writer %d: %d after %d", w, n&0xffffff, last[w])
		} else {
			last[w] = n & 0xffffff
		}
		came++
		return nil
	})
	s.Set(shape.Limits{In: shape.Rate{Bits: 1e9}})
	var wg sync.WaitGroup
	var sent atomic.Int64
	for w := range uint32(writers) {
		wg.Go(func() {
			for i := uint32(1); i <= each; i++ {
				if s.Write(sized(100+int(i)%3000, w<<24|i)) == nil {
					sent.Add(1)
				}
			}
		})
	}
	wg.Wait()
	for s.Stats().Waiting > 0 {
		time.Sleep(time.Millisecond)
	}
	mu.Lock()
	defer mu.Unlock()
	if st := s.Stats(); int64(came) != sent.Load() || st.Dropped != writers*each-uint64(came) {
		t.Errorf("%d sent, %d came, %d dropped", sent.Load(), came, st.Dropped)
	}
}

// A limited port costs no garbage, whether its packets pass or wait.
func TestNoAllocations(t *testing.T) {
	s := shape.New(func([]byte) error { return nil })
	s.Set(shape.Limits{In: shape.Rate{Bits: 1e15}, Out: shape.Rate{Bits: 1e15}})
	p := sized(1420, 0)
	if n := testing.AllocsPerRun(1000, func() {
		_ = s.Write(p)
		_ = s.Wait()
		s.Sent(len(p))
	}); n > 0 {
		t.Errorf("%v allocations for a packet", n)
	}
}

func BenchmarkWrite(b *testing.B) {
	s := shape.New(func([]byte) error { return nil })
	s.Set(shape.Limits{In: shape.Rate{Bits: 1e15}})
	p := sized(1420, 0)
	for b.Loop() {
		_ = s.Write(p)
	}
}

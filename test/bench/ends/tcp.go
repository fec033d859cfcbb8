package ends

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// abreast runs f so many times at once, each on a connection of its own or none,
// and joins the errors.
func abreast(n int, f func(i int) error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// goodbye is how long a stream waits for the other end to have read all and closed.
// Not every way between two ends passes on that one of them has ended.
const goodbye = 300 * time.Millisecond

// stream sends on so many connections until the time is over, and then waits until
// everything has arrived: the server closes when it has read all.
func (r Request) stream() (Result, error) {
	fds := make([]int, 0, r.Number)
	defer func() {
		for _, fd := range fds {
			_ = syscall.Close(fd)
		}
	}()
	for range r.Number {
		fd, err := dial(r.To)
		if err != nil {
			return Result{}, err
		}
		fds = append(fds, fd)
	}
	start := time.Now()
	err := abreast(r.Number, func(i int) error {
		buf := make([]byte, chunk)
		for time.Since(start) < r.For {
			if err := writeAll(fds[i], buf); err != nil {
				return err
			}
		}
		if err := errors.Join(syscall.Shutdown(fds[i], syscall.SHUT_WR), limit(fds[i], goodbye)); err != nil {
			return fmt.Errorf("end the stream: %w", err)
		}
		if _, err := read(fds[i], buf); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EAGAIN) {
			return fmt.Errorf("wait for the end of the stream: %w", err)
		}
		return nil
	})
	return Result{Took: time.Since(start)}, err
}

// ask sends requests over so many connections.
func (r Request) ask() (Result, error) {
	took := make([][]time.Duration, r.Number)
	start := time.Now()
	err := abreast(r.Number, func(i int) error {
		fd, err := dial(r.To)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		buf := make([]byte, r.Size)
		for next := start; time.Since(start) < r.For; next = next.Add(r.Pace) {
			if r.Pace > 0 {
				time.Sleep(time.Until(next))
			}
			begin := time.Now()
			if err := errors.Join(writeAll(fd, buf), readAll(fd, buf)); err != nil {
				return fmt.Errorf("request %d: %w", len(took[i])+1, err)
			}
			took[i] = append(took[i], time.Since(begin))
		}
		return nil
	})
	return timed(start, took), err
}

// connect opens connections, so many at once. One that fails is counted, and its
// successor waits a moment; only when all fail it is an error.
func (r Request) connect() (Result, error) {
	took := make([][]time.Duration, r.Number)
	var failed atomic.Uint64
	start := time.Now()
	err := abreast(r.Number, func(i int) error {
		var last error
		for time.Since(start) < r.For {
			begin := time.Now()
			if last = greeted(r.To); last != nil {
				failed.Add(1)
				time.Sleep(time.Millisecond)
				continue
			}
			took[i] = append(took[i], time.Since(begin))
		}
		if len(took[i]) == 0 {
			return last
		}
		return nil
	})
	out := timed(start, took)
	out.Failed = float64(failed.Load())
	if out.Count > 0 {
		err = nil
	}
	return out, err
}

// greeted opens a connection, hears the server's byte and its end. Whoever closes
// last keeps no port waiting.
func greeted(to netip.AddrPort) error {
	fd, err := dial(to)
	if err != nil {
		return err
	}
	var buf [1]byte
	if err = readAll(fd, buf[:]); err == nil {
		if _, err = read(fd, buf[:]); errors.Is(err, io.EOF) {
			err = nil
		}
	}
	return errors.Join(err, syscall.Close(fd))
}

// timed makes a result of durations.
func timed(start time.Time, took [][]time.Duration) Result {
	out := Result{Took: time.Since(start)}
	all := slices.Concat(took...)
	if len(all) == 0 {
		return out
	}
	slices.Sort(all)
	out.Count = float64(len(all))
	out.P50, out.P99, out.Max = all[len(all)/2], all[len(all)*99/100], all[len(all)-1]
	return out
}

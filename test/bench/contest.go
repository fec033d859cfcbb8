package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/test/bench/cost"
	"github.com/netctl/netctl/test/bench/ends"
	"github.com/netctl/netctl/test/bench/results"
	"github.com/netctl/netctl/test/bench/rivals"
)

// way is a path with an end at either side.
type way struct {
	from, to *ends.End
	addr     netip.Addr
	offset   uint16         // added to the ends' ports: where a node maps them to others
	flows    int            // that a flood goes on
	load     *load          // what goes on besides, unless nil
	carriers cost.Processes // besides the ends
	all      cost.Processes // every one that has to do with the traffic, the ends included
}

// open puts ends at a path's sides.
func (b *bench) open(p *rivals.Path) (*way, error) {
	w := &way{addr: p.Addr, carriers: p.Carriers}
	var err error
	if w.from, err = b.end(p.From, 0); err != nil {
		return nil, err
	}
	if w.to, err = b.end(p.To, goruntime.NumCPU()-1); err != nil {
		return nil, err
	}
	kernelsOwn, err := cost.SoftirqThreads()
	if err != nil {
		return nil, err
	}
	w.all = slices.Concat(cost.Processes{w.from.PID(), w.to.PID()}, kernelsOwn, w.carriers)
	return w, nil
}

// end returns the end in a namespace, which all ways there share. It stays
// on one processor.
func (b *bench) end(name string, processor int) (*ends.End, error) {
	if e := b.ends[name]; e != nil {
		return e, nil
	}
	ns, err := kernel.OpenNamespace(filepath.Join(kernel.RuntimeDir, name))
	if err != nil {
		return nil, err
	}
	if !b.pin {
		processor = ends.Anywhere
	}
	e, err := ends.Start(name, ns, processor)
	if err = errors.Join(err, ns.Close()); err != nil {
		return nil, err
	}
	b.ends[name] = e
	return e, nil
}

// closeEnds ends those in namespaces whose names begin so.
func (b *bench) closeEnds(prefix string) error {
	var errs []error
	for name, e := range b.ends {
		if strings.HasPrefix(name, prefix) {
			errs = append(errs, e.Close())
			delete(b.ends, name)
		}
	}
	return errors.Join(errs...)
}

// value is one thing that a run measures. Its name is appended to the contest's.
type value struct {
	suffix, unit string
	v            float64
}

// measure is one run over a way.
type measure func(ctx context.Context, w *way) ([]value, error)

// contest runs a measure on two ways in turns and prints a ratio for each of its
// values that both have, a figure for those that one has.
func (b *bench) contest(ctx context.Context, name string, m measure, ours, theirs *way) error {
	if !b.any(name) {
		return nil
	}
	sides := []struct {
		name string
		w    *way
	}{{"ours", ours}, {"theirs", theirs}}
	for _, s := range sides { // the first packets make sessions, flows and pages
		if _, err := s.w.from.Send(ctx, ends.Request{Kind: ends.Stream, To: s.w.at(ends.SinkPort), For: 100 * time.Millisecond}); err != nil {
			return fmt.Errorf("%s, %s: %w", name, s.name, err)
		}
	}
	var order []value
	got := [2]map[string][]float64{{}, {}}
	for range b.pairs {
		for i, s := range sides {
			if err := ctx.Err(); err != nil {
				return err
			}
			values, err := m(ctx, s.w)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", name, s.name, err)
			}
			for _, v := range values {
				if len(got[0][v.suffix])+len(got[1][v.suffix]) == 0 {
					order = append(order, v)
				}
				got[i][v.suffix] = append(got[i][v.suffix], v.v)
			}
		}
	}
	for _, v := range order {
		a, t := got[0][v.suffix], got[1][v.suffix]
		switch {
		case len(a) == len(t):
			r := results.Ratio(name+v.suffix, v.unit, a, t)
			r.Unmarked = b.against != "" // marks are set against the rivals
			b.add(r)
		case len(a) > 0:
			b.add(results.Figure(name+v.suffix, v.unit, a))
		}
	}
	return nil
}

// contests runs those of two ways that are named, one after the other. What each
// measures is said by its name's end.
func (b *bench) contests(ctx context.Context, names []string, ours, theirs *way) error {
	var errs []error
	for _, name := range names { // the others can go on
		errs = append(errs, b.contest(ctx, name, measureOf(name), ours, theirs))
	}
	return errors.Join(errs...)
}

// at returns where one of the other end's ports is reached.
func (w *way) at(port uint16) netip.AddrPort { return netip.AddrPortFrom(w.addr, port+w.offset) }

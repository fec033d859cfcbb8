package ipam

import (
	"errors"
	"math/rand/v2"
	"slices"
)

var (
	errCrashed = errors.New("crashed")
	errFull    = errors.New("no space left")
)

// memory is a disk that dies. When steps runs out, the step at hand is done in
// part and every later one not at all; what is in files then is what a new
// process finds. With flaky, single steps fail and the process lives on.
type memory struct {
	rng   *rand.Rand
	files map[string][]byte
	steps int // until the crash; negative: never
	flaky int // one of so many steps fails; 0: none
	dead  bool
}

// outcome is how far a step gets.
type outcome int

const (
	whole outcome = iota
	partly
	nothing
)

func (m *memory) step() (outcome, error) {
	switch {
	case m.dead:
		return nothing, errCrashed
	case m.steps == 0:
		m.dead = true
		return partly, errCrashed
	case m.flaky > 0 && m.rng.IntN(m.flaky) == 0:
		m.steps--
		return partly, errFull
	default:
		m.steps--
		return whole, nil
	}
}

// part returns what a step wrote of data.
func (m *memory) part(o outcome, data []byte) []byte {
	switch o {
	case whole:
		return data
	case partly:
		return data[:m.rng.IntN(len(data)+1)]
	default:
		return nil
	}
}

// done reports whether a step that cannot be done in part was done.
func (m *memory) done(o outcome) bool { return o == whole || (o == partly && m.rng.IntN(2) == 0) }

func (m *memory) read(name string) ([]byte, error) { return slices.Clone(m.files[name]), nil }

func (m *memory) append(data []byte) error {
	o, err := m.step()
	m.files[journalName] = append(m.files[journalName], m.part(o, data)...)
	return err
}

func (m *memory) truncate(size int64) error {
	o, err := m.step()
	if m.done(o) {
		m.files[journalName] = slices.Clone(m.files[journalName][:size])
	}
	return err
}

func (m *memory) writeTemp(name string, data []byte) error {
	o, err := m.step()
	if o != nothing {
		m.files[name+".tmp"] = slices.Clone(m.part(o, data))
	}
	return err
}

func (m *memory) rename(from, to string) error {
	o, err := m.step()
	if m.done(o) {
		m.files[to] = m.files[from]
		delete(m.files, from)
	}
	return err
}

func (m *memory) close() error { return nil }

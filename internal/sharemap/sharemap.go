// Package sharemap is a map whose versions share what has not changed, for
// tables that are compiled again and again and differ in little: a change costs
// one part in 256 of the map, and the version before stays as it was.
//
//	e := m.Edit()      // or the zero Map's
//	e.Set(k, v)
//	next := e.Done()   // m is untouched
//
// A Map is immutable and safe for concurrent use. Maps with equal content that
// were made in one process are deeply equal, however they came about.
package sharemap

import (
	"hash/maphash"
	"iter"
	"maps"
)

// shards is how many parts a map has: few enough to copy their list, and enough
// to have a part of 100 000 entries copied in some microseconds.
const shards = 256

// seed is one for the process, so that equal maps have equal parts.
//
//nolint:gochecknoglobals // chosen once and never changed
var seed = maphash.MakeSeed()

// Map is one version. The zero value is empty.
type Map[K comparable, V any] struct {
	parts *[shards]map[K]V // nil: empty; a part without entries is nil
	n     int
}

func shardOf[K comparable](k K) uint8 {
	return uint8(maphash.Comparable(seed, k)) // one of 256
}

// Get returns the value of k, the zero value when there is none.
func (m Map[K, V]) Get(k K) V {
	v, _ := m.Lookup(k)
	return v
}

// Lookup returns the value of k and whether there is one.
func (m Map[K, V]) Lookup(k K) (V, bool) {
	if m.parts == nil {
		var zero V
		return zero, false
	}
	v, ok := m.parts[shardOf(k)][k]
	return v, ok
}

// Len returns the number of entries.
func (m Map[K, V]) Len() int { return m.n }

// All ranges over the entries in no order.
func (m Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if m.parts == nil {
			return
		}
		for _, part := range m.parts {
			for k, v := range part {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// Edit begins a new version. It is used by one goroutine and ends with Done.
func (m Map[K, V]) Edit() *Edit[K, V] {
	e := &Edit[K, V]{n: m.n}
	if m.parts != nil {
		e.parts = *m.parts
	}
	return e
}

// Edit is a version that is being made. The zero value begins with nothing.
type Edit[K comparable, V any] struct {
	parts [shards]map[K]V
	own   [shards]bool // copied already
	n     int
}

// Lookup is Map.Lookup, of what has been set so far.
func (e *Edit[K, V]) Lookup(k K) (V, bool) {
	v, ok := e.parts[shardOf(k)][k]
	return v, ok
}

// Set gives k a value.
func (e *Edit[K, V]) Set(k K, v V) {
	part := e.copied(shardOf(k))
	before := len(part)
	part[k] = v
	e.n += len(part) - before
}

// Delete takes k out.
func (e *Edit[K, V]) Delete(k K) {
	i := shardOf(k)
	if _, ok := e.parts[i][k]; !ok {
		return
	}
	part := e.copied(i)
	delete(part, k)
	e.n--
	if len(part) == 0 {
		e.parts[i], e.own[i] = nil, false
	}
}

// copied returns part i, for changing.
func (e *Edit[K, V]) copied(i uint8) map[K]V {
	if !e.own[i] {
		if e.parts[i] == nil {
			e.parts[i] = map[K]V{}
		} else {
			e.parts[i] = maps.Clone(e.parts[i])
		}
		e.own[i] = true
	}
	return e.parts[i]
}

// Done ends the edit and returns the version that it made.
func (e *Edit[K, V]) Done() Map[K, V] {
	if e.n == 0 {
		return Map[K, V]{}
	}
	parts := e.parts
	e.own = [shards]bool{} // should somebody go on, what is published stays
	return Map[K, V]{parts: &parts, n: e.n}
}

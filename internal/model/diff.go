package model

// diffMost is how many changed objects are still few.
const diffMost = 512

// Diff returns the objects of two lists of a State that only the one and only
// the other has. It looks at pointers and places, not at names: of lists of one
// length it finds those that differ, of others all between the first and the last
// difference. few: they are not many, and what follows from them may be worth more
// than to begin anew.
func Diff[T any](was, is []*T) (gone, come []*T, few bool) {
	first := 0
	for first < len(was) && first < len(is) && was[first] == is[first] {
		first++
	}
	was, is = was[first:], is[first:]
	for len(was) > 0 && len(is) > 0 && was[len(was)-1] == is[len(is)-1] {
		was, is = was[:len(was)-1], is[:len(is)-1]
	}
	if len(was) != len(is) {
		return was, is, len(was) <= diffMost && len(is) <= diffMost
	}
	for i := range was {
		if was[i] != is[i] {
			gone, come = append(gone, was[i]), append(come, is[i])
		}
	}
	return gone, come, len(come) <= diffMost
}

package model_test

import (
	"slices"
	"testing"

	"github.com/netctl/netctl/internal/model"
)

func TestDiff(t *testing.T) {
	t.Parallel()
	var o [600]int
	p := make([]*int, len(o))
	for i := range o {
		p[i] = &o[i]
	}
	list := func(of ...int) []*int {
		var out []*int
		for _, i := range of {
			out = append(out, p[i])
		}
		return out
	}
	for _, tt := range []struct {
		name                string
		was, is, gone, come []*int
		few                 bool
	}{
		{"nothing", nil, nil, nil, nil, true},
		{"equal", list(1, 2, 3), list(1, 2, 3), nil, nil, true},
		{"from nothing", nil, list(1), nil, list(1), true},
		{"to nothing", list(1, 2), nil, list(1, 2), nil, true},
		{"replaced", list(1, 2, 3), list(1, 9, 3), list(2), list(9), true},
		{"two replaced, far apart", list(1, 2, 3, 4, 5), list(9, 2, 3, 4, 8), list(1, 5), list(9, 8), true},
		{"inserted", list(1, 3), list(1, 2, 3), nil, list(2), true},
		{"removed", list(1, 2, 3), list(1, 3), list(2), nil, true},
		{"inserted between equals", list(1, 1), list(1, 1, 1), nil, list(1), true},
		{"one came, another changed", list(1, 2, 3, 4), list(9, 2, 3, 8, 4), list(1, 2, 3), list(9, 2, 3, 8), true},
		{"everything", p[:599], p[1:], p[:599], p[1:], false},
		{"too many came", nil, p, nil, p, false},
	} {
		gone, come, few := model.Diff(tt.was, tt.is)
		if few != tt.few || !slices.Equal(gone, tt.gone) || !slices.Equal(come, tt.come) {
			t.Errorf("%s: %d gone, %d came, few: %v; want %d, %d, %v", tt.name, len(gone), len(come), few, len(tt.gone), len(tt.come), tt.few)
		}
	}
}

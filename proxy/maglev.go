package proxy

import "github.com/netctl/netctl/proxy/maglev"

// maglevTables makes the Maglev tables of one service port's lists of backends, each
// once: its addresses share them.
type maglevTables struct {
	on   bool
	made []madeTable
}

type madeTable struct {
	list  []Backend
	table []uint16
}

func (m *maglevTables) of(list []Backend) []uint16 {
	if !m.on || len(list) < 2 {
		return nil
	}
	for _, one := range m.made {
		if len(one.list) == len(list) && &one.list[0] == &list[0] {
			return one.table
		}
	}
	names := make([]uint64, len(list))
	for i := range list {
		d := newDigest()
		d.bytes(list[i].Addr[:])
		d.number(uint64(list[i].Port))
		names[i] = d.sum()
	}
	table := maglev.Table(names)
	m.made = append(m.made, madeTable{list, table})
	return table
}

package ipam

import (
	"fmt"
	"net/netip"
	"time"
)

// load reads the record. Only a file that cannot be read at all, or one of a
// newer version, is an error.
func (p *Pool) load() error {
	snapshot, err := p.disk.read(snapshotName)
	if err != nil {
		return err
	}
	journal, err := p.disk.read(journalName)
	if err != nil {
		return err
	}
	base, err := p.loadSnapshot(snapshot)
	if err != nil {
		return err
	}
	bad, _ := readLines(journal, func(l line) {
		p.seq = max(p.seq, l.Seq)
		if l.Seq > base && l.Op != opHeader {
			p.replay(l)
		}
	})
	p.report.Damaged += bad
	p.report.Leases = len(p.leases)
	p.size, p.torn = int64(len(journal)), len(journal) > 0
	if !p.torn && !p.report.Broken() {
		return nil
	}
	if p.report.Broken() {
		p.cfg.Logger.Error("address record damaged", "damaged_lines", p.report.Damaged, "lost_lines", p.report.Lost,
			"conflicts", p.report.Conflicts, "kept_as", damagedName)
		if err := p.replace(damagedName, append(snapshot, journal...)); err != nil {
			return err
		}
	}
	return p.compact()
}

// loadSnapshot reads the snapshot and returns the sequence number up to which
// it stands for the history.
func (p *Pool) loadSnapshot(data []byte) (uint64, error) {
	if len(data) == 0 {
		return 0, nil
	}
	var header line
	good := 0
	bad, end := readLines(data, func(l line) {
		p.seq = max(p.seq, l.Seq)
		if l.Op == opHeader {
			header = l
			return
		}
		good++
		if header.Version <= recordVersion {
			p.replay(l)
		}
	})
	if header.Version > recordVersion {
		return 0, fmt.Errorf("written by a newer netctl (format %d, this one knows %d)", header.Version, recordVersion)
	}
	if end < len(data) {
		bad++
	}
	p.report.Damaged += bad
	if header.Version == 0 || header.Lines != good {
		p.report.Lost += max(1, header.Lines-good)
	}
	return header.Seq, nil
}

// replay makes a line of the record true. Of two leases of one address the
// first stays.
func (p *Pool) replay(l line) {
	id := ID{l.CID, l.If}
	at := time.UnixMilli(l.Time)
	if l.Op == opAdd {
		conflict := p.leases[id] != nil
		for _, a := range l.Addr {
			conflict = conflict || p.byAddr[a] != nil
		}
		if conflict {
			p.report.Conflicts++
			return
		}
		p.insert(&Lease{ID: id, PodUID: l.UID, Addresses: l.Addr, Since: at, seq: l.Seq})
		return
	}
	if old := p.leases[id]; old != nil {
		p.remove(old)
	}
	for _, a := range l.Addr {
		if p.byAddr[a] != nil {
			p.report.Conflicts++
			continue
		}
		p.space(a).take(a) // it may stand in the queue already when lines were lost
		p.space(a).put(released{addr: a, at: at, seq: l.Seq})
	}
}

// record appends a line to the journal and returns its sequence number, which
// is never used again even when the line could not be written. p.mu is held.
func (p *Pool) record(l line) (uint64, error) {
	if p.torn {
		if err := p.compact(); err != nil {
			return 0, err
		}
	}
	p.seq++
	l.Seq = p.seq
	b, err := appendLine(p.buf[:0], l)
	if err != nil {
		return 0, err
	}
	p.buf = b
	if err := p.disk.append(b); err != nil {
		// Half a line may be there, and would spoil the next one.
		if p.disk.truncate(p.size) != nil {
			p.torn = true
		}
		return 0, fmt.Errorf("write journal: %w", err)
	}
	p.size += int64(len(b))
	p.lines++
	return l.Seq, nil
}

// tidy makes a new snapshot when the journal has become long. A failure is no
// failure of what was asked for: the journal has it. p.mu is held.
func (p *Pool) tidy() {
	free := len(p.spaces[0].free) + len(p.spaces[1].free)
	if p.lines < max(compactAfter, 2*(len(p.leases)+free)) {
		return
	}
	if err := p.compact(); err != nil {
		p.cfg.Logger.Warn("address record not compacted", "error", err)
		p.lines /= 2 // try again later, not at every change
	}
}

// compact writes everything into a new snapshot and empties the journal.
func (p *Pool) compact() error {
	b, err := p.snapshot()
	if err != nil {
		return err
	}
	if err := p.replace(snapshotName, b); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	// From here on the journal's lines are ignored.
	if err := p.disk.truncate(0); err != nil {
		return fmt.Errorf("empty journal: %w", err)
	}
	p.size, p.lines, p.torn = 0, 0, false
	return nil
}

// replace puts new content into a file in one step.
func (p *Pool) replace(name string, data []byte) error {
	if err := p.disk.writeTemp(name, data); err != nil {
		return err
	}
	return p.disk.rename(name+".tmp", name)
}

// snapshot renders the tables.
func (p *Pool) snapshot() ([]byte, error) {
	var free []released
	for f := range p.spaces {
		free = append(free, p.spaces[f].released()...)
	}
	b, err := appendLine(nil, line{Op: opHeader, Seq: p.seq, Version: recordVersion, Lines: len(p.leases) + len(free)})
	for _, l := range p.ordered() {
		if err != nil {
			return nil, err
		}
		b, err = appendLine(b, line{
			Op: opAdd, Seq: l.seq, Time: l.Since.UnixMilli(), CID: l.ContainerID, If: l.IfName, UID: l.PodUID, Addr: l.Addresses,
		})
	}
	for _, r := range free {
		if err != nil {
			return nil, err
		}
		b, err = appendLine(b, line{Op: opFree, Seq: r.seq, Time: r.at.UnixMilli(), Addr: []netip.Addr{r.addr}})
	}
	return b, err
}

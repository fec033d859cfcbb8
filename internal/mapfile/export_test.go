package mapfile

// Dead shows whom a process that waits takes for dead.
func (f *File) Dead(ticket uint64, naps int) bool { return f.dead(ticket, naps) }

package dns

// Err returns what the log was told last: which servers of the files are
// refused and why, and nil when all are used.
func (r *ResolvConf) Err() error {
	r.Upstreams()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Updates reports whether Compile makes the zone from the previous one.
func Updates(in Input) bool { return update(in) != nil }

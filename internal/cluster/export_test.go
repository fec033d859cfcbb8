package cluster

import "time"

// Patience shows how long a source waits for an API server before it begins with
// the State of the last run.
func (k *Kubernetes) Patience() time.Duration { return k.patience() }

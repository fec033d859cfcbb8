package kernel

func activeOffloads(name string) (Offloads, error) { return Offloads{}, nil }

//go:build !race

package lab

// raceDetector: the program under test is built as the test is.
const raceDetector = false

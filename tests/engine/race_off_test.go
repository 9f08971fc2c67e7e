//go:build !race

package engine

const slow = 1

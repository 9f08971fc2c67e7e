// Package zns is the zone state machine of a host-managed zoned block device.
package zns

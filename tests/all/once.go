package main

import (
	"strings"

	"github.com/qzbd/qzbd/tests/vm"
)

// leftToTheOther are tests of tests/kernel of what hardly depends on the kernel:
// commands, files, images, file systems below them. Of the two kernels of make
// test one runs them; a thorough run does so on both.
var leftToTheOther = map[vm.Series][]string{
	vm.Series612: {
		"TestADeviceOfTheMostZonesTakesLittleMemory",
		"TestADiskThatRefusesReadsFailsTheReads",
		"TestAFileSystemWithoutDirectIOIsNamedAsTheReason",
		"TestAReadOnlyDeviceShowsAllAndChangesNothing",
		"TestAServerWorksWhenThereIsNoMemory",
		"TestAnImageThatNeedsMoreThanIsBuiltIsShownAndRefused",
		"TestAnOrphanWithoutAServerIsRemoved",
		"TestAnotherServerOfAFailedImage",
		"TestCompletionsKnowWhatIsAttached",
		"TestDetachByForceTakesADeviceFromItsUsers",
		"TestDetachTakesADeviceAnImageOrAll",
		"TestEachDeviceHasItsMetrics",
		"TestFilesAndNodesHaveTheLeastRights",
		"TestImagesOfEveryLayoutAreUsedAndKept",
		"TestNobodyOnTheControlSocketDisturbsAServer",
		"TestNothingFollowsASymlinkInRun",
		"TestQEMUKeepsOutOfAnAttachedImage",
		"TestReadersShareAnImageAndKeepWritersOut",
		"TestTheZoneTraceHasALineForEveryChange",
		"TestThreeDevicesAtOnce",
		"TestVerboseLogsEveryRequest",
		"TestWhatIsNoZonedImageIsRefused",
		"TestWhatTheSeriesAcceptedIsNotAttached",
	},
	vm.Series7: {
		"TestABadSyncIntervalIsRefused",
		"TestADeviceInUseIsNotDetached",
		"TestADiskThatFailsInOneZoneLeavesTheOthersAlone",
		"TestAFullFileSystemFailsNoImage",
		"TestAFullFileSystemRefusesOnlyWhatNeedsSpace",
		"TestAnImageThatQEMUHasOpenIsRefusedByName",
		"TestAnImageThatTheKernelCannotServeIsRefused",
		"TestAnOrphanThatIsServedIsStoppedInOrder",
		"TestAnotherImageInThePlaceOfItsOwn",
		"TestAppendsGoOnWhereAFullFileSystemStoppedThem",
		"TestDirectIOInLargerBlocksNeedsThemOnTheDevice",
		"TestForeignThingsAmongTheRecordsAreNoObstacle",
		"TestInfoDescribesAnImageAttachedOrNot",
		"TestStatisticsAgreeWithFio",
		"TestStatisticsAndBlkzoneAgreeOnConditions",
		"TestTheFoundingExampleKeepsItsWritePointers",
		"TestUpgradesThatAreRefused",
		"TestWatchingGoesOnAfterARecoveryAndEndsWithTheDevice",
		"TestWhatIsNoImageFileIsNamedForWhatItIs",
		"TestWhatNobodyFlushesIsDurableInTime",
		"TestWhoIsNotRootIsToldSo",
		"TestZoneStatesSurviveDetachAndAttach",
	},
}

// flags are those of the kernel tests of a package.
func (k kernelRun) flags(series vm.Series, pkg string) []string {
	flags := []string{"-test.run=" + k.tests}
	if k.thorough && pkg == "tests/kernel" {
		flags = append(flags, "-thorough")
	}
	if k.noZeroCopy {
		flags = append(flags, "-no-zero-copy")
	}
	if k.thorough || k.tests != "" { // who names a test wants it on both
		return flags
	}
	switch {
	case pkg == "tests/kernel":
		flags = append(flags, "-test.skip=^("+strings.Join(leftToTheOther[series], "|")+")$")
	case pkg == "tests/zbdtest" && series == vm.Series612:
		// What shows that the rules are right.
		flags = append(flags, "-test.skip=^TestTheDeviceKeepsToTheRules$/^(null_blk|scsi_debug)")
	}
	return flags
}

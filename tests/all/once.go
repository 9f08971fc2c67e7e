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
		"TestAReadOnlyDeviceShowsAllAndChangesNothing",
		"TestAnImageThatNeedsMoreThanIsBuiltIsShownAndRefused",
		"TestCompletionsKnowWhatIsAttached",
		"TestDetachByForceTakesADeviceFromItsUsers",
		"TestFilesAndNodesHaveTheLeastRights",
		"TestImagesOfEveryLayoutAreUsedAndKept",
		"TestNothingFollowsASymlinkInRun",
		"TestQEMUKeepsOutOfAnAttachedImage",
		"TestReadersShareAnImageAndKeepWritersOut",
		"TestTheZoneTraceHasALineForEveryChange",
		"TestVerboseLogsEveryRequest",
		"TestWhatIsNoZonedImageIsRefused",
		"TestWhatTheSeriesAcceptedIsNotAttached",
	},
	vm.Series7: {
		"TestAFullFileSystemFailsNoImage",
		"TestAFullFileSystemRefusesOnlyWhatNeedsSpace",
		"TestAnImageThatQEMUHasOpenIsRefusedByName",
		"TestAppendsGoOnWhereAFullFileSystemStoppedThem",
		"TestForeignThingsAmongTheRecordsAreNoObstacle",
		"TestInfoDescribesAnImageAttachedOrNot",
		"TestStatisticsAgreeWithFio",
		"TestTheFoundingExampleKeepsItsWritePointers",
		"TestUpgradesThatAreRefused",
		"TestWhatIsNoImageFileIsNamedForWhatItIs",
		"TestWhoIsNotRootIsToldSo",
		"TestZoneStatesSurviveDetachAndAttach",
	},
}

// flags are those of the kernel tests of a package.
func (k kernelRun) flags(series vm.Series, pkg string) []string {
	flags := []string{"-test.run=" + k.tests}
	switch {
	case pkg != "tests/kernel":
	case k.thorough:
		flags = append(flags, "-thorough")
	case k.tests == "": // who names a test wants it on both
		flags = append(flags, "-test.skip=^("+strings.Join(leftToTheOther[series], "|")+")$")
	}
	return flags
}
